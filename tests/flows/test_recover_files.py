"""Files and databases of a night, brought back to a folder and to a client behind a real sshd."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.cli.main import gbs
from flows.recover_database import recover_database as recover_database_flow
from flows.recover_files import recover_files as recover_files_flow
from tasks import database_recovery, file_search, places
from tasks.drivers import appliance_files, databases, ssh
from tasks.drivers.appliance import DiskFile
from tasks.drivers.databases import recovering
from tasks.drivers.digest import sha256_file, write_listing
from tasks.drivers.store import write_model
from tasks.errors import (
    Ambiguous,
    CommandFailed,
    CommandTimedOut,
    ConfigError,
    IntegrityError,
    LeftBehind,
    NothingToRecover,
    RecoveryRefused,
    RestoreFailed,
)
from tasks.model.databases import Server
from tasks.model.manifest import DumpRecord, FileRecord, ImageManifest
from tasks.model.night_choice import OVERNIGHT, Night
from tests.flows.fake_site import FakeSite
from tests.lab.database_client import DatabaseClient
from tests.lab.leftovers import LABS
from tests.lab.sshd import make_key
from tests.unit.records import NIGHT, image_manifest, night_manifest, pulled_image

recover_files: Any = recover_files_flow
recover_database: Any = recover_database_flow
REAL_CONNECT, REAL_DUMP, REAL_LIST = ssh.connect, databases.dump_database, databases.list_databases


def publish(folder: Path, number: int, files: dict[str, bytes], **changed: Any) -> None:
    """A night of db1 in a folder."""
    for name, content in files.items():
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_listing(folder / "data", folder / "SHA256SUMS", None, None)
    (folder / "facts.json").write_text("{}")
    sums, facts = sha256_file(folder / "SHA256SUMS"), sha256_file(folder / "facts.json")
    ended = NIGHT + timedelta(days=number)
    there = {"client": "db1", "listing_sha256": sums, "facts_sha256": facts, "files": len(files)}
    write_model(folder / "manifest.json", night_manifest(ended, **{**there, **changed}))


@pytest.fixture
def nights(site: FakeSite) -> FakeSite:
    """Two nights of db1: the newest is the overnight copy and a restore point."""
    new = {"etc/hosts": b"new\n", "srv/a": b"a", "srv/deep/b": b"bb"}
    publish(site.store / "overnight/db1", 2, new)
    publish(site.permanent / "db1/daily.0", 2, new)
    publish(site.permanent / "db1/daily.1", 1, {**new, "etc/hosts": b"old\n"})
    return site


def test_files_of_every_night_come_to_a_new_folder(nights: FakeSite) -> None:
    (nights.store / "overnight/db1/data/srv/a").chmod(0o640)
    os.chown(nights.store / "overnight/db1/data/srv/a", 12, 34)
    done = recover_files("db1", ["/srv", "/etc/hosts"])
    assert (done.files, done.verified, done.replaced, done.kept_aside) == (3, 3, (), None)
    folder = Path(done.to)
    assert folder.is_relative_to(nights.store / "recovered/db1")
    assert folder.parent.parent.stat().st_mode & 0o77 == 0
    assert (folder / "etc/hosts").read_text() == "new\n"
    status = (folder / "srv/a").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (12, 34, 0o640)
    old = recover_files("db1", ["/etc/hosts"], "daily.1", str(nights.root / "elsewhere"))
    assert (nights.root / "elsewhere/etc/hosts").read_text() == "old\n"
    assert old.source == night_manifest(NIGHT + timedelta(days=1)).id


def test_what_is_there_refuses_or_is_kept_aside(nights: FakeSite, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").write_text("mine\n")
    with pytest.raises(RecoveryRefused, match=r"1 things are there and differ.*/etc/hosts.*--overwrite"):
        recover_files("db1", ["/etc/hosts"], to=str(tmp_path))
    looked = recover_files("db1", ["/etc/hosts"], to=str(tmp_path), dry_run=True)
    assert len(looked.replaced) == 1
    assert (tmp_path / "etc/hosts").read_text() == "mine\n"
    done = recover_files("db1", ["/etc/hosts"], to=str(tmp_path), overwrite=True)
    assert (tmp_path / "etc/hosts").read_text() == "new\n"
    assert (Path(str(done.kept_aside)) / "etc/hosts").read_text() == "mine\n"
    again = recover_files("db1", ["/etc/hosts"], to=str(tmp_path))
    assert (again.replaced, again.verified) == ((), 1)


def test_damaged_file_writes_nothing_and_names_the_night_that_has_it_whole(nights: FakeSite, tmp_path: Path) -> None:
    (nights.store / "overnight/db1/data/srv/a").write_text("X")
    with pytest.raises(IntegrityError, match=r"nothing was written; night (\S+) has the same version whole: --from \1"):
        recover_files("db1", ["/srv"], to=str(tmp_path / "to"))
    assert not (tmp_path / "to").exists()
    assert recover_files("db1", ["/srv"], "daily.1", str(tmp_path / "to")).verified == 2


def test_commands_find_compare_and_recover(nights: FakeSite, tmp_path: Path) -> None:
    def gbs_says(*words: str) -> str:
        done = CliRunner().invoke(gbs, words, catch_exceptions=False, standalone_mode=False)
        return str(done.stdout)

    (hosts,) = json.loads(gbs_says("find", "db1", "hosts", "--json"))
    assert (hosts["path"], hosts["deleted"]) == ("/etc/hosts", None)
    assert [version["size_bytes"] for version in hosts["versions"]] == [4, 4]
    assert "/srv/deep/b" in gbs_says("find", "db1", "/srv/*/b")
    assert "changed" in gbs_says("diff", "db1", "daily.1", "latest")
    assert "no difference" in gbs_says("diff", "db1", "daily.1", "latest", "/srv")
    assert gbs_says("diff", "db1", "daily.1", "latest", "/etc/hosts", "--content").endswith("-old\n+new\n \n")
    assert "are in" in gbs_says("recover", "files", "db1", "/etc/hosts", "--to", str(tmp_path / "to"))
    assert "dry run" in gbs_says("recover", "files", "db1", "/srv", "--to", str(tmp_path / "to"), "--dry-run")


@pytest.mark.parametrize("damage", ["damaged", "unreadable"])
def test_night_that_cannot_be_searched_is_a_warning_and_hides_no_other(
    nights: FakeSite, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    if damage == "damaged":
        (nights.permanent / "db1/daily.1/SHA256SUMS").write_text("x\n")
    else:
        read = file_search._at

        def read_far_only(declared: Any, night: Night, *args: Any) -> Any:
            if night.name == OVERNIGHT:
                raise OSError(errno.EIO, "Input/output error")
            return read(declared, night, *args)

        monkeypatch.setattr(file_search, "_at", read_far_only)

    def gbs_says(*words: str) -> tuple[int, Any, str]:
        done = CliRunner().invoke(gbs, [*words, "--json"], catch_exceptions=False, standalone_mode=False)
        return done.return_value, json.loads(done.stdout), " ".join(done.stderr.split())

    code, rows, warned = gbs_says("find", "db1", "hosts")
    assert (code, [len(row["versions"]) for row in rows]) == (3, [1])
    assert re.search(r"warning: night \S+ \((daily.1|overnight)\) was not searched: ", warned)
    assert gbs_says("find", "db1", "no such file")[:2] == (3, [])


@pytest.mark.parametrize(
    ("paths", "to", "problem"),
    [
        (["/etc/none"], None, NothingToRecover),
        (["etc/hosts"], None, ConfigError),
        (["/etc/../root"], None, ConfigError),
        (["/etc/hosts"], "/", ConfigError),
        (["/etc/hosts"], "nobody:/x", ConfigError),
        (["/etc/hosts"], "db1:x", ConfigError),
    ],
)
def test_what_cannot_be_is_refused(nights: FakeSite, paths: list[str], to: str | None, problem: Any) -> None:
    with pytest.raises(problem):
        recover_files("db1", paths, to=to)


def test_files_inside_an_image_are_found_and_compared_with_a_night(nights: FakeSite, tmp_path: Path) -> None:
    """A real image in libguestfs's real appliance."""
    tree, folder = tmp_path / "tree", nights.store / "images/kvm1/db1/20261124T000000Z"
    for name, text in {"etc/hosts": "new\n", "srv/deep/b": "changed", "only/here": "x"}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    folder.mkdir(parents=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(folder / "vda.raw"), "16M"], check=True)
    write_model(folder / "manifest.json", pulled_image(vm="db1"))

    def gbs_says(*words: str) -> Any:
        done = CliRunner().invoke(gbs, [*words, "--json"], catch_exceptions=False, standalone_mode=False)
        return json.loads(done.stdout)

    (hosts,) = gbs_says("find", "db1", "hosts", "--images")
    sums = hashlib.sha256(b"new\n").hexdigest()
    version = {"sha256": sums, "size_bytes": 4, "nights": ["20261124T000000Z"]}
    assert hosts == {"path": "/etc/hosts", "versions": [version], "deleted": None}
    found = gbs_says("diff", "db1", "image:latest", "latest", "/srv")
    assert [(row["change"], row["path"]) for row in found] == [("added", "/srv/a"), ("changed", "/srv/deep/b")]
    with pytest.raises(NothingToRecover, match="20261124T000000Z"):
        gbs_says("find", "db1", "hosts", "--image", "20200101T000000Z")
    with pytest.raises(ConfigError, match="--content compares nights"):
        gbs_says("diff", "db1", "image:latest", "latest", "/etc/hosts", "--content")


def test_files_of_what_an_image_could_not_mount_are_not_said_to_be_gone(nights: FakeSite, tmp_path: Path) -> None:
    """A real image whose second file system is damaged, in libguestfs's real appliance."""
    tree, image = tmp_path / "tree", nights.store / "images/kvm1/db1/20261124T000000Z/vda.raw"
    for name, text in {"etc/fstab": "/dev/sda1 / ext4 rw 0 1\n/dev/sda2 /srv ext4 rw 0 2\n", "srv/below": "x"}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "etc/os-release").write_text("ID=debian\nVERSION_ID=12\n")
    for name in ("bin", "lib", "usr", "var", "boot"):
        (tree / name).mkdir()
    image.parent.mkdir(parents=True)
    layout = "label: dos\nstart=2048, size=40960, type=83\nstart=43008, size=20480, type=83\n"
    image.touch()
    os.truncate(image, 32 << 20)
    subprocess.run(["sfdisk", "-q", str(image)], input=layout.encode(), check=True)
    for sectors, start, what in ((40960, 2048, ["-d", str(tree)]), (20480, 43008, [])):
        made = ["mke2fs", "-q", "-t", "ext4", *what, "-E", f"offset={start * 512}", str(image), f"{sectors // 2}k"]
        subprocess.run(made, check=True)
    with image.open("r+b") as file:
        file.seek(43008 * 512 + 1024 + 4)
        file.write(b"\xff" * 52)  # more blocks than there is room for; it is ext4 still
    write_model(image.parent / "manifest.json", pulled_image(vm="db1"))

    def gbs_says(*words: str) -> tuple[int, Any, str]:
        done = CliRunner().invoke(gbs, [*words, "--json"], catch_exceptions=False, standalone_mode=False)
        return done.return_value, json.loads(done.stdout), " ".join(done.stderr.split())

    said = "warning: image 20261124T000000Z: a file system of the guest could not be mounted, so not looked at: /srv: "
    code, rows, warned = gbs_says("diff", "db1", "image:latest", "latest", "/")
    assert ([row["path"] for row in rows if row["path"].startswith("/srv")], code) == ([], 3)
    assert "/etc/fstab" in [row["path"] for row in rows]
    assert said in warned
    code, rows, warned = gbs_says("find", "db1", "below", "--images")
    assert (code, rows, said in warned) == (3, [], True)


@pytest.mark.parametrize("where", ["overnight/db1/data", "images", "", "far", "far/db1", "link", "above"])
def test_files_never_come_among_the_backups(nights: FakeSite, tmp_path: Path, where: str) -> None:
    (tmp_path / "link").symlink_to(nights.permanent)
    (nights.store / "recovered").mkdir(exist_ok=True)
    to, path = nights.store / where, "/etc/hosts"
    if where.startswith("far"):
        to = nights.permanent / where.removeprefix("far").lstrip("/")
    elif where == "link":
        to = tmp_path / "link/new"
    elif where == "above":
        to, path = nights.store.parent, f"/{nights.store.name}/images/x"
        publish(nights.store / "overnight/db1", 3, {path.lstrip("/"): b"x"})
    with pytest.raises(ConfigError, match=r"is among the backups in .* \(--to\): give a folder elsewhere"):
        recover_files("db1", [path], to=str(to))
    own = nights.store / "recovered/mine"
    assert recover_files("db1", ["/etc/hosts"], "daily.0", to=str(own)).verified == 1
    shutil.rmtree(own)


@pytest.fixture
def image(site: FakeSite) -> Path:
    """An image of web1."""
    folder = site.store / "images/kvm1/web1/20261124T000000Z"
    folder.mkdir(parents=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(folder / "vda.qcow2"), "1M"], check=True)
    write_model(folder / "manifest.json", image_of(folder))
    return folder


def image_of(folder: Path) -> ImageManifest:
    disk = folder / "vda.qcow2"
    file = FileRecord(path=disk.name, size_bytes=disk.stat().st_size, sha256=sha256_file(disk))
    return image_manifest(NIGHT, id=folder.name, files=(file,))


Asked = list[tuple[Any, tuple[str, ...]]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the appliance was asked for; it gives one file."""
    given: Asked = []

    def copy_out(disks: Any, paths: Any, destination: Path, **_: Any) -> Any:
        given.append((disks, tuple(paths)))
        (destination / "etc").mkdir()
        (destination / "etc/hosts").write_text("from the image")
        return appliance_files.CopiedOut(("/var: damaged",))

    monkeypatch.setattr(appliance_files, "copy_out", copy_out)
    return given


def test_image_serves_where_there_are_no_files(site: FakeSite, image: Path, asked: Asked, tmp_path: Path) -> None:
    done = recover_files("web1", ["/etc/hosts"], to=str(tmp_path / "to"), image=True)
    assert asked == [([DiskFile(image / "vda.qcow2", "qcow2")], ("etc/hosts",))]
    assert (done.source, done.verified) == ("image 20261124T000000Z", 1)
    assert done.warnings == ("a file system of the guest could not be mounted: /var: damaged",)
    assert (tmp_path / "to/etc/hosts").read_text() == "from the image"
    assert not list((site.store / "opened").glob("*/*"))
    words = ["recover", "files", "web1", "/etc/hosts", "--image", "--to", str(tmp_path / "again")]
    said = CliRunner().invoke(gbs, words, catch_exceptions=False, standalone_mode=False)
    assert said.return_value == 3
    assert "warning: a file system of the guest could not be mounted" in said.stdout
    with pytest.raises(NothingToRecover, match="20261124T000000Z"):
        recover_files("web1", ["/etc/hosts"], "20200101T000000Z", image=True)


def test_image_that_is_not_what_its_manifest_says_gives_no_files(site: FakeSite, image: Path, asked: Asked) -> None:
    disk = image / "vda.qcow2"
    with disk.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(IntegrityError, match=r"vda\.qcow2"):
        recover_files("web1", ["/etc/hosts"], image=True)
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/x", "-F", "raw", str(disk), "1M"]
    subprocess.run(argv, check=True)
    write_model(image / "manifest.json", image_of(image))
    with pytest.raises(IntegrityError, match=r"an image without a backing file, found backing file '/x'"):
        recover_files("web1", ["/etc/hosts"], image=True)
    assert asked == []


def test_files_of_which_only_attributes_differed_are_not_said_to_be_kept(nights: FakeSite, tmp_path: Path) -> None:
    recover_files("db1", ["/etc/hosts"], to=str(tmp_path))
    (tmp_path / "etc/hosts").chmod(0o600)
    words = ["recover", "files", "db1", "/etc/hosts", "--to", str(tmp_path), "--overwrite"]
    said = CliRunner().invoke(gbs, words, catch_exceptions=False, standalone_mode=False).stdout
    assert "other attributes: .f...p" in said
    assert "old ones are in" not in said
    assert not list(tmp_path.glob(".gbs-*"))


@pytest.fixture(scope="module")
def system() -> Iterator[DatabaseClient]:
    """A client with a root file system of its own, sshd and database servers."""
    folder = LABS / f"flows-{os.getpid()}"
    folder.mkdir(parents=True)
    client = DatabaseClient("db1", folder / "db1", make_key(folder / "id", "gbs tests"))
    try:
        client.start()
        for engine in ("postgresql", "mariadb", "sqlite"):
            client.engine(engine, "start")
        yield client
    finally:
        client.remove()
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture
def db1(nights: FakeSite, system: DatabaseClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatabaseClient]:
    """The site's db1 is that client; another one, db2, is it as well."""
    engines: list[Any] = [{"engine": "postgresql"}, {"engine": "mariadb"}]
    engines += [{"engine": "sqlite", "names": ["/srv/app/shop.db"]}, {"engine": "redis"}]
    there = {"address": "127.0.0.1", "port": system.ssh_port, "databases": engines}
    nights.declare({"kvm1": {"address": "kvm1.test", "paths": ["/etc"]}}, {"db1": there, "db2": there})
    kept = [(nights.root / name).read_text() for name in ("key", "known_hosts")]
    (nights.root / "key").write_text((system.directory.parent / "id").read_text())
    (nights.root / "key").chmod(0o600)
    (nights.root / "known_hosts").write_text(f"{system.known_hosts_line}\n")
    monkeypatch.setattr(ssh, "connect", REAL_CONNECT)
    monkeypatch.setattr(databases, "dump_database", REAL_DUMP)
    monkeypatch.setattr(databases, "list_databases", REAL_LIST)
    yield system
    for name, text in zip(("key", "known_hosts"), kept, strict=True):
        (nights.root / name).write_text(text)


def test_files_go_back_to_the_client_and_are_proven_there(nights: FakeSite, db1: DatabaseClient) -> None:
    db1.run(["sh", "-c", "mkdir -p /srv; echo today > /srv/a; chmod 711 /srv"])
    with pytest.raises(RecoveryRefused, match=r"/srv/a.*--overwrite"):
        recover_files("db1", ["/srv/a", "/srv/deep"], to="db1:/")
    done = recover_files("db1", ["/srv/a", "/srv/deep"], to="db1:/", overwrite=True)
    assert (done.verified, len(done.replaced)) == (2, 1)
    assert db1.run(["cat", "/srv/a", "/srv/deep/b", f"{done.kept_aside}/srv/a"]).stdout == "abbtoday\n"
    assert db1.run(["stat", "-c", "%a", "/srv"]).stdout == "711\n"
    recover_files("db1", ["/srv/deep"], to="db2:/root/back")
    assert db1.run(["cat", "/root/back/srv/deep/b"]).stdout == "bb"
    db1.run(["sh", "-c", "rm -r /srv/deep; ln -s /root /srv/deep"])
    with pytest.raises(RecoveryRefused, match=r"/srv/deep is a link there"):
        recover_files("db1", ["/srv/deep/b"], to="db1:/")
    assert db1.run(["sh", "-c", "ls /root/b 2>&1 || true"]).stdout.endswith("No such file or directory\n")


def dumped(site: FakeSite, db1: DatabaseClient, engine: Any, name: str, **changed: Any) -> None:
    """The overnight copy has a dump of a database of the client's, as stage 0 makes it."""
    with ssh.connect(places.target_of("db1")) as shell:
        dump = databases.dump_database(shell, Server(engine), name, 0, "/var/backups/gbs", 60)
        content = subprocess.run([*db1.enter(), "cat", dump.path], capture_output=True, check=True).stdout
    assert hashlib.sha256(content).hexdigest() == dump.sha256
    record = DumpRecord(**{**dump.model_dump(), **changed})
    publish(site.store / "overnight/db1", 3, {dump.path.lstrip("/"): content}, dumps=(record,))


@pytest.mark.parametrize(
    ("engine", "name", "other"),
    [
        ("postgresql", "crm", "crm copy"),
        ("mariadb", "crm", "crm copy"),
        ("sqlite", "/srv/app/shop.db", "/srv/app/shop copy.db"),
    ],
)
def test_database_comes_back_beside_and_in_place_of_the_old_one(
    nights: FakeSite, db1: DatabaseClient, engine: str, name: str, other: str
) -> None:
    db1.engine(engine, "fill", name)
    before = db1.engine(engine, "read_back", name)
    dumped(nights, db1, engine, name, tables=1)
    db1.engine(engine, "lose", name) if engine != "sqlite" else db1.run(["sqlite3", name, "DELETE FROM t"])
    with pytest.raises(RecoveryRefused, match=r"it exists: --replace"):
        recover_database("db1", name)
    assert recover_database("db1", name, dry_run=True).exists
    beside = recover_database("db1", name, to="db2", name=other)
    assert (beside.tables, beside.kept_aside) == (1, None)
    assert db1.engine(engine, "read_back", other) == before
    done = recover_database("db1", name, replace=True)
    assert (done.tables, done.expected_tables) == (1, 1)
    assert db1.engine(engine, "read_back", name) == before
    if engine == "mariadb":
        assert "CREATE TABLE `other`" in db1.run(["cat", str(done.kept_aside)]).stdout
    elif engine == "postgresql":
        kept = ["runuser", "-u", "postgres", "--", "psql", "-XAtqc", "SELECT count(*) FROM other", str(done.kept_aside)]
        assert db1.run(kept).stdout == "0\n"
    else:
        assert db1.run(["sqlite3", str(done.kept_aside), "SELECT count(*) FROM t"]).stdout == "0\n"
    assert db1.run(["sh", "-c", "ls -d /var/backups/gbs/recovered-* 2>/dev/null || true"]).stdout == ""


@pytest.mark.parametrize(("engine", "name"), [("postgresql", "kept"), ("mariadb", "kept")])
def test_dump_that_does_not_come_back_whole_leaves_the_old_database(
    nights: FakeSite, db1: DatabaseClient, engine: str, name: str
) -> None:
    db1.engine(engine, "fill", name)
    before = db1.engine(engine, "read_back", name)
    dumped(nights, db1, engine, name, tables=7)
    with pytest.raises(RestoreFailed, match=r"1 tables came back, 7 were counted"):
        recover_database("db1", name, replace=True)
    assert db1.engine(engine, "read_back", name) == before
    with pytest.raises(RestoreFailed, match=r"1 tables came back, 7 were counted"):
        recover_database("db1", name, name="fresh")
    assert not recover_database("db1", name, name="fresh", dry_run=True).exists
    damaged = next((nights.store / "overnight/db1/data/var/backups/gbs" / engine).glob("kept*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="take another night"):
        recover_database("db1", name, replace=True)
    assert db1.engine(engine, "read_back", name) == before


@pytest.mark.parametrize("engine", ["postgresql", "mariadb", "sqlite"])
@pytest.mark.parametrize("done", [False, True], ids=["not begun", "done"])
def test_old_database_that_could_not_be_put_aside_is_there_as_it_was(
    nights: FakeSite, db1: DatabaseClient, monkeypatch: pytest.MonkeyPatch, engine: str, done: bool
) -> None:
    name = f"/srv/app/aside {done}" if engine == "sqlite" else f"aside {done}"
    db1.engine(engine, "fill", name)
    before = db1.engine(engine, "read_back", name)
    dumped(nights, db1, engine, name)
    verb = "drop" if engine == "mariadb" else "rename"
    real, called = getattr(recovering, verb), []

    def breaks(*words: Any) -> None:
        called.append(words)
        if done or len(called) > 1:
            real(*words)
        if len(called) == 1:
            raise CommandTimedOut(verb, 60, "")

    monkeypatch.setattr(recovering, verb, breaks)
    with pytest.raises(CommandTimedOut):
        recover_database("db1", name, replace=True)
    assert db1.engine(engine, "read_back", name) == before


def test_old_database_whose_drop_was_refused_keeps_what_was_written_since_it_was_dumped(
    nights: FakeSite, db1: DatabaseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, sleeping = "busy", "SELECT SLEEP(999)"
    db1.engine("mariadb", "fill", name)
    dumped(nights, db1, "mariadb", name)
    real = recovering.drop

    def sql(text: str) -> str:
        return db1.run(["mariadb", "-N", "-D", name, "-e", text]).stdout

    def refused(*words: Any) -> None:
        """A reader's open transaction holds the table; it has ended when the old database would be brought back."""
        sql("INSERT INTO t VALUES (5001, 'written since'); SET GLOBAL lock_wait_timeout = 1")
        reader = [*db1.enter(), "mariadb", "-D", name, "-e", f"START TRANSACTION; SELECT n FROM t LIMIT 1; {sleeping}"]
        with subprocess.Popen(reader, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            query = f"SELECT id FROM information_schema.processlist WHERE info = '{sleeping}'"
            while not (holder := sql(query).strip()):
                pass
            try:
                real(*words)
            finally:
                sql(f"SET GLOBAL lock_wait_timeout = 86400; KILL {holder}")

    monkeypatch.setattr(recovering, "drop", refused)
    with pytest.raises(RestoreFailed, match="Lock wait timeout exceeded"):
        recover_database("db1", name, replace=True)
    assert sql("SELECT m FROM t WHERE n = 5001") == "written since\n"


def test_old_database_that_was_dropped_by_half_is_brought_back(
    nights: FakeSite, db1: DatabaseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    db1.engine("mariadb", "fill", "halved")
    db1.run(["mariadb", "-D", "halved", "-e", "CREATE TABLE first (n int)"])
    before = db1.engine("mariadb", "read_back", "halved")
    dumped(nights, db1, "mariadb", "halved")

    def breaks(*_: Any) -> None:
        db1.run(["mariadb", "-D", "halved", "-e", "DROP TABLE t"])
        raise CommandTimedOut("drop", 60, "")

    monkeypatch.setattr(recovering, "drop", breaks)
    with pytest.raises(CommandTimedOut):
        recover_database("db1", "halved", replace=True)
    assert db1.engine("mariadb", "read_back", "halved") == before


def test_undo_of_a_drop_of_which_it_is_not_known_what_it_did_says_how_to_see_it(
    nights: FakeSite, db1: DatabaseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    db1.engine("mariadb", "fill", "unsure")
    dumped(nights, db1, "mariadb", "unsure")

    def breaks(*_: Any) -> None:
        monkeypatch.setattr(recovering, "is_there", fails)
        raise CommandTimedOut("drop", 60, "")

    def fails(*_: Any) -> None:
        raise RestoreFailed("mariadb database 'unsure' on db1", "the server has gone away")

    monkeypatch.setattr(recovering, "drop", breaks)
    with pytest.raises(LeftBehind) as left:
        recover_database("db1", "unsure", replace=True)
    assert re.search(r"undo with: leave it if it has its 1 tables; else drop what .* kept as /var", str(left.value))


@pytest.mark.parametrize("gone", [False, True], ids=["no answer", "at neither name"])
def test_old_database_that_is_not_found_again_is_left_behind_with_its_other_name(
    nights: FakeSite, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """No server is asked: what it would say is given."""
    called = iter([True] if not gone else [True, False])

    def is_there(*_: Any) -> bool:
        found = next(called, None)
        if found is None:
            raise RestoreFailed("postgresql database 'crm' on db1", "the server does not answer")
        return found

    def breaks(*_: Any, **__: Any) -> None:
        raise RestoreFailed("postgresql database 'crm' on db1", "it does not load")

    monkeypatch.setattr(recovering, "is_there", is_there)
    monkeypatch.setattr(recovering, "rename", lambda *_: None)
    monkeypatch.setattr(recovering, "load", breaks)
    monkeypatch.setattr(databases, "list_databases", lambda *_: {"crm": 7})
    dump = DumpRecord(engine="postgresql", kind="database", database="crm", path="/d", size_bytes=1, sha256="0" * 64)
    aim = database_recovery.Aim("db1", Server("postgresql"), "crm", "now")
    with pytest.raises(LeftBehind, match=r"it does not load; then .*bring back the old one, kept as crm-replaced-now"):
        database_recovery.load.fn(dump, aim, replace=True)


def test_database_that_came_while_the_dump_was_sent_refuses_the_run(
    nights: FakeSite, db1: DatabaseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    db1.engine("mariadb", "fill", "early")
    dumped(nights, db1, "mariadb", "early")
    real = database_recovery.send

    def sent(*words: Any) -> Any:
        db1.engine("mariadb", "fill", "late")
        return real(*words)

    monkeypatch.setattr(database_recovery, "send", sent)
    with pytest.raises(RecoveryRefused, match=r"'late' on db1 refused: it exists: --replace"):
        recover_database("db1", "early", name="late")
    assert db1.engine("mariadb", "read_back", "late").startswith("5000")


def test_dump_that_cannot_be_removed_hides_nothing(
    nights: FakeSite, db1: DatabaseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    db1.engine("mariadb", "fill", "stays")
    dumped(nights, db1, "mariadb", "stays", tables=7)

    def breaks(_: Any) -> None:
        raise CommandFailed("rm", 1, "read-only")

    monkeypatch.setattr(database_recovery, "remove", breaks)
    with pytest.raises(RestoreFailed, match="7 were counted"):
        recover_database("db1", "stays", name="stays 2")
    dumped(nights, db1, "mariadb", "stays")
    (said,) = recover_database("db1", "stays", name="stays 2").warnings
    assert re.fullmatch(r"the dump that was sent is left on db1: rm failed .* read-only", said)


@pytest.mark.parametrize(("engine", "name"), [("postgresql", "postgres"), ("postgresql", "é" * 32), ("sqlite", "shop")])
def test_name_that_a_database_cannot_have_is_refused(
    nights: FakeSite, db1: DatabaseClient, engine: Any, name: str
) -> None:
    record = {"path": "/var/backups/gbs/x", "size_bytes": 1, "sha256": "0" * 64}
    publish(nights.store / "overnight/db1", 3, {}, dumps=(DumpRecord(engine=engine, database="crm", **record),))
    with pytest.raises(ConfigError, match="--as"):
        recover_database("db1", "crm", name=name)


def test_database_that_is_not_dumped_or_of_an_engine_without_names_is_refused(
    nights: FakeSite, db1: DatabaseClient
) -> None:
    record = {"path": "/var/backups/gbs/x", "size_bytes": 1, "sha256": "0" * 64}
    dumps = [DumpRecord(engine=engine, database="all", **record) for engine in ("redis", "postgresql")]
    publish(nights.store / "overnight/db1", 3, {}, dumps=dumps)
    with pytest.raises(NothingToRecover, match="has dumps of: redis all, postgresql all"):
        recover_database("db1", "none")
    with pytest.raises(Ambiguous, match="--engine redis"):
        recover_database("db1", "all")
    with pytest.raises(RecoveryRefused, match=r"gbs recover files db1 /var/backups/gbs/x --from \S+, then load it by"):
        recover_database("db1", "all", engine="redis")
