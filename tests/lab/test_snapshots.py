"""Files pulled from btrfs snapshots on a client, through a key that can only read; judged by btrfs, findmnt, rsync."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tasks.drivers import client_snapshot, rsync, ssh
from tasks.drivers.rsync import Transferred, Wanted
from tasks.drivers.ssh import Shell
from tasks.errors import SourceRefused
from tasks.model.client_snapshot import BTRFS_FOLDER, ROOT, SnapshotTree, WantedSnapshot
from tasks.model.ssh_target import SshTarget
from tests.lab.hostile_tree import make_tree
from tests.lab.snapshot_client import SnapshotClient
from tests.lab.sshd import make_key

ROOT_FOLDER = Path(__file__).parents[2]
PATHS = ("/etc/hostname", "/srv", "/srv/log")
WRITER = """
n=0
while [ ! -e /srv/pair/stop ]; do
    n=$((n + 1))
    for file in a z; do echo $n >/srv/pair/$file.new; mv /srv/pair/$file.new /srv/pair/$file; done
    sleep 0.005
done
"""
LISTING = ["find", ".", "-type", "d", "-printf", "%P %y %m %U %G\\0", "-o", "-printf", "%P %y %m %U %G %s %T@ %n\\0"]


@pytest.fixture(scope="module")
def client(lab_folder: Path) -> Iterator[SnapshotClient]:
    """The client; its second key can only read."""
    keys = [make_key(lab_folder / f"id_snapshot_{use}", use) for use in ("all", "files")]
    system = SnapshotClient("snap1", lab_folder / "snap1", f'{keys[0]}\nrestrict,command="rrsync -ro /" {keys[1]}')
    system.start()
    yield system
    system.remove()


@pytest.fixture(scope="module")
def target(client: SnapshotClient, lab_folder: Path) -> SshTarget:
    """The client by the key that may do all."""
    return client.target(lab_folder / "id_snapshot_all")


@pytest.fixture
def shell(client: SnapshotClient, target: SshTarget) -> Iterator[Shell]:
    """A shell on it; whatever a test leaves there is gone afterwards, and all else is as it was."""
    mounts, subvolumes = client.mounts(), client.subvolumes()
    with ssh.connect(target) as connected:
        yield connected
        assert client_snapshot.clear(connected) == []
    assert (client.mounts(), client.subvolumes()) == (mounts, subvolumes)
    assert not client.outside(ROOT).exists()


def make(shell: Shell, paths: tuple[str, ...] = PATHS, wanted: WantedSnapshot = "auto") -> SnapshotTree:
    return client_snapshot.make(shell, paths, wanted, 10, datetime.now(UTC))


def pull(
    target: SshTarget, tree: SnapshotTree | None, night: Path, last: Path | None = None, kib_s: int | None = None
) -> Transferred:
    """Pull as stage 1 does, by the key that can only read."""
    return rsync.pull(
        replace(target, private_key_file=target.private_key_file.with_name("id_snapshot_files")),
        Wanted(
            [tree.reads[path] if tree else path for path in PATHS],
            exclude=["/srv/left-out", "/srv/log/*.gz", *(tree.left_out if tree else ())],
            link_dests=[last] if last else [],
            limit_kib_s=kib_s,
        ),
        night,
        deadline_s=120,
    )


def kinds(tree: SnapshotTree) -> dict[str, str]:
    return {source.place: source.kind for source in tree.sources}


@contextmanager
def _writing(client: SnapshotClient) -> Iterator[None]:
    """A process of the client that keeps two files in lock-step; between them lies a third that takes long to send."""
    pair = client.outside("/srv/pair")
    pair.mkdir(exist_ok=True)
    (pair / "middle").write_bytes(bytes(range(256)) * 8192)
    writer = subprocess.Popen([*client.enter(), "sh", "-c", WRITER])
    try:
        while not (pair / "z").exists():
            assert writer.poll() is None
        yield
    finally:
        (pair / "stop").touch()
        writer.wait(timeout=30)
        client.run(["rm", "-r", "/srv/pair"])


def _apart(night: Path) -> int:
    """How many steps the two files of a copy are apart."""
    first, last = (int((night / "srv/pair" / name).read_text()) for name in ("a", "z"))
    return last - first


def test_files_changed_in_lock_step_are_of_one_instant_only_in_a_snapshot(
    client: SnapshotClient, target: SshTarget, shell: Shell, tmp_path: Path
) -> None:
    with _writing(client):
        tree = make(shell)
        began = datetime.now(UTC)
        pull(target, tree, tmp_path / "snapshot", kib_s=1024)
        client_snapshot.require_whole(shell, tree, 10)
        pull(target, None, tmp_path / "live", kib_s=1024)
    # The snapshot may fall between the two writes of a step.
    assert _apart(tmp_path / "snapshot") in (-1, 0)
    assert _apart(tmp_path / "live") > 1, "the files did not change during the transfer: this test proves nothing"
    instants = {source.place: source.instant for source in tree.sources}
    assert instants["/"] is None
    assert all(instant is not None and instant <= began for place, instant in instants.items() if place != "/")


def test_copy_of_a_snapshot_is_that_of_the_live_files_and_unchanged_ones_are_linked(
    client: SnapshotClient, target: SshTarget, shell: Shell, tmp_path: Path
) -> None:
    root = client.outside("/srv/tree")
    root.mkdir()
    try:
        make_tree(root)
        for path in ("left-out", "log/old.gz", "kept/srv/left-out", "kept/log/old.gz"):
            client.outside(f"/srv/{path}").parent.mkdir(parents=True, exist_ok=True)
            client.outside(f"/srv/{path}").write_text(path)
        live, first, second = tmp_path / "live", tmp_path / "1", tmp_path / "2"
        pull(target, None, live)
        tree = make(shell)
        assert kinds(tree) == {"/": "live", "/srv": "btrfs", "/srv/log": "btrfs"}
        assert tree.warnings == ()
        pull(target, tree, first)
        assert client_snapshot.clear(shell) == []
        listings = [
            subprocess.run(LISTING, cwd=night, capture_output=True, check=True).stdout for night in (live, first)
        ]
        assert sorted(listings[0].split(b"\0")) == sorted(listings[1].split(b"\0"))
        # In front of the longest path there is no room for the name of the copy.
        argv = ["rsync", "-aHAXSn", "--checksum", "--itemize-changes", "--delete", "--exclude=/tree/ddd*"]
        argv += [f"{live}/srv/", f"{first}/srv/"]
        assert subprocess.run(argv, capture_output=True, check=True).stdout == b""
        assert (first / "srv/kept/srv/left-out").exists()
        names = {row.split(b" ")[0] for row in listings[1].split(b"\0")}
        assert not {b"srv/left-out", b"srv/log/old.gz", b"srv/log/hidden"} & names
        client.outside("/srv/kept/new").write_text("new")
        # In front of the longest path rsync has no room for that of last night: one file more is sent.
        moved = pull(target, make(shell), second, first)
        assert moved.changed <= 2
        for path in ("etc/hostname", "srv/kept/srv/left-out"):
            assert (second / path).stat().st_ino == (first / path).stat().st_ino
    finally:
        client.run(["sh", "-c", "rm -rf /srv/tree /srv/kept /srv/left-out /srv/log/old.gz"])


def test_what_a_mount_hides_is_not_pulled(
    client: SnapshotClient, target: SshTarget, shell: Shell, tmp_path: Path
) -> None:
    tree = make(shell, ("/srv",))
    assert tree.left_out == ("/srv/log/*",)
    rsync.pull(target, Wanted([tree.reads["/srv"]], exclude=tree.left_out), tmp_path, deadline_s=60)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["srv", "srv/log"]


def test_client_itself_sees_its_own_mounts_all_the_while(client: SnapshotClient, shell: Shell) -> None:
    """What is mounted in the bound root file system would appear in the real one, over /srv, were it not private."""
    before = client.mounts()
    tree = make(shell)
    ours = [line for line in client.mounts() if line.startswith(f"{ROOT}/")]
    assert [line.split()[-1] for line in ours] == ["private"] * 3
    assert [line for line in client.mounts() if line not in ours] == before
    for place in ("srv", "etc"):
        written = client.run(["sh", "-c", f"cd {ROOT}/*/tree/{place} && touch x"], check=False)
        assert "Read-only file system" in written.stderr
    assert client.run(["stat", "-c", "%a %U", ROOT]).stdout == "700 root\n"
    assert len(tree.mounted) == 2


def slow_run(target: SshTarget, night: Path) -> None:
    """What a GBS server does, in a process of its own: it takes minutes."""
    with ssh.connect(target) as shell:
        pull(target, make(shell), night, kib_s=16)


def _run_and_kill(client: SnapshotClient, target: SshTarget, night: Path) -> None:
    """A GBS server that dies while it pulls."""
    client.outside("/srv/large").write_bytes(os.urandom(4 << 20))
    code = "import pickle, sys; from tests.lab.test_snapshots import slow_run; slow_run(*pickle.load(sys.stdin.buffer))"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=ROOT_FOLDER) as server:
        assert server.stdin is not None
        server.stdin.write(pickle.dumps((target, night)))
        server.stdin.close()
        while not list(night.glob("srv/.large.*")):
            assert server.poll() is None
            time.sleep(0.01)
        server.kill()
    client.outside("/srv/large").unlink()
    assert len(client.subvolumes()) == 2 + 2


def test_leftovers_of_a_killed_run_are_removed_by_the_next_and_nobody_elses(
    client: SnapshotClient, target: SshTarget, shell: Shell, tmp_path: Path
) -> None:
    before = client.mounts()
    _run_and_kill(client, target, tmp_path)
    foreign = {f"{BTRFS_FOLDER}/keep", f"{BTRFS_FOLDER}/gbs-20260101T000000Z-0", "@srv/gbs-20260101T000000Z-1"}
    client.in_top(f"""
        btrfs -q subvolume snapshot -r @srv {BTRFS_FOLDER}/keep             # ours by kind, not by name
        btrfs -q subvolume snapshot @srv {BTRFS_FOLDER}/gbs-20260101T000000Z-0   # by name, but it can be written
        btrfs -q subvolume snapshot -r @srv @srv/gbs-20260101T000000Z-1     # not in our folder
        mkdir {BTRFS_FOLDER}/gbs-20260101T000000Z-2                         # no subvolume at all
    """)
    try:
        assert len(client.subvolumes()) == 2 + 2 + 3
        with ssh.connect(shell.target) as next_run:
            assert client_snapshot.clear(next_run) == []
        assert client.subvolumes() == {"@srv", "@log", *foreign}
        assert client.mounts() == before
    finally:
        client.in_top(f"btrfs -q subvolume delete {' '.join(foreign)}; rmdir {BTRFS_FOLDER}/gbs-* {BTRFS_FOLDER}")


def test_snapshot_in_use_is_told_and_taken_away_when_it_is_not(client: SnapshotClient, shell: Shell) -> None:
    tree = make(shell)
    (place,) = [path for path, own in tree.mounted.items() if own == "/srv"]
    with subprocess.Popen(
        [*client.enter(), "sh", "-c", 'cd "$1" && echo in && read -r _', "sh", place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"in\n"
        lines = client_snapshot.clear(shell)
        user.communicate(b"\n")
    assert any(place in line and "busy" in line for line in lines), lines


def test_snapshot_that_went_away_makes_the_night_refused(client: SnapshotClient, shell: Shell) -> None:
    tree = make(shell)
    client_snapshot.require_whole(shell, tree, 10)
    (place,) = [path for path, own in tree.mounted.items() if own == "/srv/log"]
    client.run(["umount", place])
    with pytest.raises(SourceRefused, match="the snapshot of /srv/log went away"):
        client_snapshot.require_whole(shell, tree, 10)


def test_kind_that_the_client_does_not_have_is_read_live_and_told(shell: Shell) -> None:
    tree = make(shell, wanted="lvm")
    assert set(kinds(tree).values()) == {"live"}
    (line,) = tree.warnings
    assert line.startswith("no file system could be read from a snapshot")


def test_snapshot_that_cannot_be_made_is_read_live_and_told(
    client: SnapshotClient, target: SshTarget, shell: Shell, tmp_path: Path
) -> None:
    client.in_top(f"touch {BTRFS_FOLDER}")  # where our folder would be
    try:
        tree = make(shell)
        assert set(kinds(tree).values()) == {"live"}
        assert [line.partition(": ")[0] for line in tree.warnings] == ["/srv was read live", "/srv/log was read live"]
        assert "File exists" in tree.warnings[0]
        client.outside("/srv/log/new").write_text("new")
        pull(target, tree, tmp_path)
        assert (tmp_path / "srv/log/new").read_text() == "new"
        client_snapshot.require_whole(shell, tree, 10)
    finally:
        client.in_top(f"rm {BTRFS_FOLDER}")
        client.outside("/srv/log/new").unlink()


@contextmanager
def _mounted(client: SnapshotClient, subvolume: str, place: str) -> Iterator[None]:
    device = client.run(["findmnt", "-n", "-o", "SOURCE", "/srv"]).stdout.partition("[")[0]
    client.run(["mkdir", place])
    client.run(["mount", "-o", f"subvol={subvolume}", device, place])
    try:
        yield
    finally:
        client.run(["umount", place])
        client.run(["rmdir", place])


def test_our_own_folder_is_not_pulled_where_all_of_a_file_system_is_mounted(
    client: SnapshotClient, target: SshTarget, shell: Shell, tmp_path: Path
) -> None:
    with _mounted(client, "/", "/srv/whole"):
        tree = make(shell, ("/srv/log", "/srv/whole"))
        assert kinds(tree) == {"/srv/log": "btrfs", "/srv/whole": "btrfs"}
        rsync.pull(target, Wanted([tree.reads["/srv/whole"]], exclude=tree.left_out), tmp_path, deadline_s=60)
        assert sorted(path.name for path in (tmp_path / "srv/whole").iterdir()) == ["@log", "@srv"]
        assert client_snapshot.clear(shell) == []


@pytest.mark.parametrize("name", ["a b", "$(touch pwned)`id`;", "'\"\\x", "-o rw", "é*[x]?"])
def test_hostile_mount_point_is_only_a_name(
    client: SnapshotClient, target: SshTarget, shell: Shell, tmp_path: Path, name: str
) -> None:
    place = f"/srv/{name}"
    with _mounted(client, "@log", place):
        client.outside(f"{place}/file").write_text(name)
        tree = make(shell, ("/srv", place))
        assert (kinds(tree), tree.warnings) == ({"/srv": "btrfs", place: "btrfs"}, ())
        rsync.pull(target, Wanted([tree.reads[place]], exclude=tree.left_out), tmp_path, deadline_s=60)
        assert (tmp_path / place[1:] / "file").read_text() == name
        client.outside(f"{place}/file").unlink()
        assert client_snapshot.clear(shell) == []
    assert client.run(["sh", "-c", "ls -d pwned /pwned /root/pwned /run/pwned"], check=False).stdout == ""


def test_outlook_tells_what_would_be_and_makes_nothing(client: SnapshotClient, shell: Shell) -> None:
    before = client.subvolumes(), client.mounts()
    assert "/srv btrfs, /srv/log btrfs" in client_snapshot.outlook(shell, PATHS, "auto", 10)
    assert "/srv btrfs, /srv/log btrfs" in client_snapshot.outlook(shell, (), "auto", 10)
    assert (client.subvolumes(), client.mounts()) == before


def test_path_through_a_link_is_read_live_by_its_own_name(client: SnapshotClient, shell: Shell) -> None:
    client.outside("/srv/link").symlink_to("/etc")
    try:
        tree = make(shell, ("/srv", "/srv/link/hostname"))
    finally:
        client.outside("/srv/link").unlink()
    assert tree.reads["/srv/link/hostname"] == "/srv/link/hostname"
    assert kinds(tree) == {"/srv": "btrfs", "/srv/link/hostname": "live"}
    assert len(tree.warnings) == 1
