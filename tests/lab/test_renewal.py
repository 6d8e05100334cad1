"""A sync made of what is there already: rsync finds nothing to do after it, and older points are as they were."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.drivers import changed, renewal, restore_points, rsnapshot, store_clock
from tasks.drivers.changed import Changed
from tasks.drivers.digest import sha256_file, write_listing
from tasks.drivers.renewal import Renewal
from tasks.drivers.rsnapshot import rsync_options
from tasks.drivers.store import write_model
from tasks.model.names import new_id
from tasks.model.retention import Reading
from tests.unit.points_site import Site
from tests.unit.records import NIGHT, night_manifest


class Client:
    """A client that changes, its overnight copies as stage 1 makes them (by rsync --link-dest), its restore points."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.site, self.random = Site(folder), random.Random(seed)
        self.tree, self.counted = folder / "client", folder / "counted"
        self.tree.mkdir()
        self.number, self.found = 0, Changed("", "", frozenset())
        for name in ("a/one", "a/two", "a/b/three", "c/four", *(f"many/{number}" for number in range(100))):
            self.write(name)
        os.link(self.tree / "a/one", self.tree / "c/linked")
        (self.tree / "c/symlink").symlink_to("four")
        os.mkfifo(self.tree / "c/fifo")
        (self.tree / "empty").mkdir()

    def write(self, name: str) -> None:
        path = self.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} {self.random.random()}")

    def night(self) -> None:
        """The tree as it is now becomes the overnight copy; what changed is found as stage 1 does."""
        self.number += 1
        ended = NIGHT + timedelta(days=self.number)
        source = self.site.source
        old, new = source.with_name("old"), source.with_name("new")
        (new / "data").mkdir(parents=True)
        links = [f"--link-dest={source}/data"] if source.exists() else []
        subprocess.run(["rsync", "-aHAXS", "--modify-window=-1", *links, f"{self.tree}/", f"{new}/data/"], check=True)
        last = (source / "data", source / "SHA256SUMS") if source.exists() else (None, None)
        listed = write_listing(new / "data", new / "SHA256SUMS", *last)
        (new / "facts.json").write_text("{}")
        sums, facts = sha256_file(new / "SHA256SUMS"), sha256_file(new / "facts.json")
        manifest = night_manifest(ended, files=listed.files, listing_sha256=sums, facts_sha256=facts)
        write_model(new / "manifest.json", manifest)
        if source.exists():
            since = new_id(ended - timedelta(days=1))
            source.with_name("changed").unlink(missing_ok=True)
            if (found := changed.find(new / "data", listed)) is not None:
                changed.write(source.with_name("changed"), Changed(since, new_id(ended), found))
            source.rename(old)
        new.rename(source)
        subprocess.run(["rm", "-rf", old], check=True)

    def keep(self) -> bool:
        """The night becomes the newest point; whether that was a renewal."""
        self.site.lock.unlink(missing_ok=True)
        rsnapshot.sync(self.site.far, self.site.config, self.site.source, self.site.root, 60, self.renewal())
        restore_points.rotate(self.site.far, self.site.root, self.site.rules, 0)
        return self.counted.exists() and self.counted.read_text() != "0\n"

    def renewal(self) -> Renewal | None:
        """What stage 2 goes by."""
        found = changed.read(self.site.source.with_name("changed"))
        return Renewal(found, rsync_options(), self.counted.with_name("list"), self.counted) if found else None

    def differs(self) -> str:
        """What rsync would still do to make the newest point the overnight copy, every byte compared."""
        argv = ["rsync", "--dry-run", "--itemize-changes", "-aHAXS", "--checksum", "--delete", "--modify-window=-1"]
        below = [f"{self.site.source}/data", f"{self.site.source}/SHA256SUMS", f"{self.site.source}/facts.json"]
        argv += [*below, f"{self.site.root}/daily.0/"]  # the folder itself has got its stamp since
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def older(self) -> dict[str, str]:
        """What find(1) says of each older point, and the sha256 of its files."""
        return {
            path.name: signature(path)
            for path in sorted(self.site.root.glob("*.*"))
            if path.name[0] != "." and path.name != "daily.0"
        }


def signature(folder: Path) -> str:
    argv = ["find", ".", "-printf", r"%P %y %m %U %G %T@ %l\n"]
    text = subprocess.run(argv, cwd=folder, check=True, capture_output=True).stdout
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    content = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)
    return hashlib.sha256(b"".join(sorted(text.splitlines())) + content).hexdigest()


def by_night(client: Client) -> dict[str, str]:
    """The signatures by the night of the point, whatever it is called now."""
    points = restore_points.points(client.site.root)
    return {
        manifest.id: signature(client.site.root / name)
        for name, manifest in points.items()
        if manifest and name != "daily.0"
    }


def _file(client: Client) -> Path:
    files = [path for path in client.tree.rglob("*") if path.is_file() and not path.is_symlink()]
    return client.random.choice(sorted(files))


def _folder(client: Client) -> Path:
    return client.random.choice(sorted(path for path in client.tree.rglob("*") if path.is_dir()) or [client.tree])


def _touch_attributes(client: Client) -> None:
    path = _file(client)
    path.chmod(client.random.choice([0o600, 0o640, 0o755]))
    os.chown(path, client.random.randrange(1000), 0)


def _become_folder(client: Client) -> None:
    path = _file(client)
    path.unlink()
    (path / "inside").mkdir(parents=True)
    (path / "inside/file").write_text("x")


def _become_link(client: Client) -> None:
    path = _file(client)
    path.unlink()
    path.symlink_to("/etc/hostname")


def _remove_folder(client: Client) -> None:
    subprocess.run(["rm", "-rf", _folder(client)], check=True)


def _link(client: Client) -> None:
    os.link(_file(client), client.tree / f"link-{client.random.randrange(10**6)}")


def _deep(client: Client) -> None:
    """A folder that is gone the next time, deeper than what recurses would get."""
    path = client.tree / "deep"
    if path.exists():
        subprocess.run(["rm", "-rf", path], check=True)
    else:
        (path / "/".join("d" * 300)).mkdir(parents=True)


def _attributes_of_folder(client: Client) -> None:
    folder = _folder(client)
    subprocess.run(["setfacl", "-m", "d:u:33:rwx,u:34:r", folder], check=True)
    os.setxattr(folder, "user.mark", str(client.random.random()).encode())


def _odd_names(client: Client) -> None:
    for name in (b"line\nbreak", b"\xff\xfe", b"# ;", b"-rf", b"back\\slash"):
        Path(os.fsdecode(os.path.join(os.fsencode(_folder(client)), name))).write_text(str(client.random.random()))


def _device(client: Client) -> None:
    os.mknod(client.tree / f"null-{client.random.randrange(10**6)}", 0o600 | stat.S_IFCHR, os.makedev(1, 3))


DEEDS: list[Callable[[Client], object]] = [
    lambda client: client.write(str(_file(client).relative_to(client.tree))),
    lambda client: client.write(f"new/{client.random.randrange(9)}/{client.random.randrange(99)}"),
    lambda client: _file(client).unlink(),
    lambda client: _file(client).rename(client.tree / f"moved-{client.random.randrange(10**6)}"),
    lambda client: _folder(client).chmod(client.random.choice([0o700, 0o755, 0o1777])),
    lambda client: subprocess.run(["setfacl", "-m", "u:33:r", _file(client)], check=True),
    lambda client: os.setxattr(_file(client), "user.mark", str(client.random.random()).encode()),
    _touch_attributes,
    _become_folder,
    _become_link,
    _link,
    _deep,
    _attributes_of_folder,
    _odd_names,
    _device,
]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_client_does_its_points_are_what_rsync_would_have_made(tmp_path: Path, seed: int) -> None:
    client, renewed = Client(tmp_path, seed), 0
    for _ in range(12):
        client.night()
        before = by_night(client)
        newest = client.site.root / "daily.0"
        last = (restore_points.points(client.site.root).get("daily.0"), signature(newest) if newest.exists() else "")
        renewed += client.keep()
        assert client.differs() == ""
        after = by_night(client)
        assert {night: text for night, text in before.items() if night in after and after[night] != text} == {}
        assert last[0] is None or after[last[0].id] == last[1]
        for deed in client.random.choices(DEEDS, k=client.random.randrange(4)):
            deed(client)
    assert renewed >= 5


def test_what_did_not_change_is_the_same_inode_in_all_points(tmp_path: Path) -> None:
    client = Client(tmp_path)
    for _ in range(6):
        client.night()
        client.keep()
        client.write("a/one")
    names = [client.site.root / point / "data/many/3" for point in restore_points.points(client.site.root)]
    assert len({path.stat().st_ino for path in names}) == 1
    assert (client.site.root / "daily.0/data/a/one").samefile(client.site.root / "daily.0/data/c/linked")


def test_a_tree_that_is_due_is_used_again_and_one_that_is_not_stays(tmp_path: Path) -> None:
    client = Client(tmp_path)
    for _ in range(5):
        client.night()
        client.keep()
    (due,) = client.site.root.glob(".trash-*")
    inode, kept = (due / "data").stat().st_ino, due.rename(client.site.root / ".trash-9999-01-01-daily.2-x")
    client.night()
    assert client.keep()
    assert kept.exists()
    assert (client.site.root / "daily.0/data").stat().st_ino != inode
    restore_points.tidy(client.site.far, client.site.root)
    kept.rename(due)
    client.night()
    assert client.keep()
    assert (client.site.root / "daily.0/data").stat().st_ino == inode


def test_a_tree_that_is_due_stays_while_the_clock_is_in_doubt(tmp_path: Path) -> None:
    """A clock that was ahead for a night used up what could be had back."""
    client = Client(tmp_path)
    for _ in range(5):
        client.night()
        client.keep()
    (due,) = client.site.root.glob(".trash-*")
    then = time.time() - 400 * 86400
    os.utime(client.site.far.path / store_clock.SEEN, (then, then))
    client.night()
    assert client.keep()
    assert (due / "manifest.json").exists()
    assert client.differs() == ""


@pytest.mark.parametrize("why", ["another night", "damaged", "half", "list", "missing"])
def test_when_it_will_not_do_rsync_compares_all(tmp_path: Path, why: str) -> None:
    client = Client(tmp_path)
    client.night()
    client.keep()
    client.write("a/one")
    if why == "half":
        for number in range(60):
            client.write(f"many/{number}")
    client.night()
    site = client.site
    if why == "another night":
        client.write("a/two")
        client.night()
    elif why == "damaged":
        night = restore_points.points(site.root)["daily.0"]
        assert night is not None
        restore_points.note(site.root, {night.id: Reading(at=NIGHT, percent=100, damaged=("/a",))})
    elif why == "list":
        path = site.source.with_name("changed")
        path.write_bytes(path.read_bytes().replace(b"a/one", b"a/two"))
    elif why == "missing":
        (site.root / "daily.0/data/many/7").unlink()
    assert not client.keep()
    assert client.differs() == ""


def test_what_went_past_us_is_found_and_put_right_by_the_seventh(tmp_path: Path) -> None:
    client = Client(tmp_path)
    for _ in range(3):
        client.night()
        client.keep()
    stray = client.site.root / "daily.0/data/many/9"
    stray.unlink()
    stray.write_text("not what the client has")
    client.night()
    assert client.keep()
    assert client.differs() != ""
    client.counted.write_text(f"{renewal.FULL_EVERY - 1}\n")
    client.night()
    assert not client.keep()
    assert client.differs() == ""


def test_the_seventh_is_a_renewal_too_when_nothing_went_past_us(tmp_path: Path) -> None:
    client = Client(tmp_path)
    for _ in range(3):
        client.night()
        client.keep()
    client.counted.write_text(f"{renewal.FULL_EVERY - 1}\n")
    client.write("a/one")
    client.night()
    config = client.site.config.read_text()
    client.site.config.write_text(config.replace("cmd_rsync\t/usr/bin/rsync", "cmd_rsync\t/bin/false"))
    client.keep()  # rsnapshot could not have
    assert client.counted.read_text() == "0\n"
    assert client.differs() == ""


def test_what_hinders_a_renewal_hinders_no_sync(tmp_path: Path) -> None:
    client = Client(tmp_path)
    for _ in range(3):
        client.night()
        client.keep()
    client.write("a/one")
    client.night()
    subprocess.run(["chattr", "+i", client.site.root / "daily.0/data/many/9"], check=True)
    try:
        assert not client.keep()
    finally:
        subprocess.run(["chattr", "-R", "-i", client.site.root], check=False, capture_output=True)
    assert client.differs() == ""


def test_a_renewal_that_was_killed_leaves_older_points_and_the_next_one_succeeds(tmp_path: Path) -> None:
    client = Client(tmp_path)
    for _ in range(4):
        client.night()
        client.keep()
    before = by_night(client) | {"newest": signature(client.site.root / "daily.0")}
    client.write("a/one")
    client.night()
    wanted = client.renewal()
    assert wanted is not None
    today = datetime.now(UTC).date()
    assert renewal.begin(client.site.root, client.site.source, wanted, "daily.0", today)
    assert by_night(client) | {"newest": signature(client.site.root / "daily.0")} == before
    assert client.keep()
    assert client.differs() == ""
