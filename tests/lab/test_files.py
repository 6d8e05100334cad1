"""Trees that rsync pulls, through a key that can do nothing else; judged by find, getfacl, getfattr, getcap, rsync."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.drivers import rsync, ssh
from tasks.drivers.digest import verify_listing, write_listing
from tasks.drivers.rsync import Wanted
from tasks.drivers.short_path import PLACE, shorten
from tasks.drivers.store import keeps_nanoseconds
from tasks.errors import CommandFailed, GbsError, TransferInterrupted
from tasks.model.ssh_target import SshTarget, ssh_argv
from tests.lab.hostile_tree import NAMES, looks, make_tree
from tests.lab.sshd import Sshd, make_key

NOBODY = 65534
READ_ONLY = 'restrict,command="rrsync -ro /"'


@pytest.fixture(scope="module")
def target(lab_folder: Path) -> Iterator[SshTarget]:
    """This machine, through a key that is restricted to rsync's reading."""
    key = make_key(lab_folder / "id_files", "gbs tests")
    sshd = Sshd(lab_folder / "files-sshd", f"{READ_ONLY} {key}")
    sshd.start()
    yield sshd.target("files", lab_folder / "id_files")
    sshd.stop()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "client $(touch pwned)"
    root.mkdir()
    make_tree(root)
    return root


def differences(tree: Path, copied: Path) -> bytes:
    """What rsync would still have to do, by checksum."""
    argv = ["rsync", "-aHAXSn", "--checksum", "--itemize-changes", "--delete", f"{tree}/", f"{copied}/"]
    return subprocess.run(argv, capture_output=True, check=True).stdout


def pull(target: SshTarget, tree: Path, night: Path, last: Path | None = None) -> rsync.Transferred:
    return rsync.pull(target, Wanted([str(tree)], link_dests=[last] if last else []), night, deadline_s=120)


def test_every_file_comes_as_it_is_and_an_unchanged_one_is_linked(
    target: SshTarget, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = tmp_path / "1", tmp_path / "2"
    pull(target, tree, first)
    copied = first / str(tree).lstrip("/")
    assert looks(copied) == looks(tree)
    assert (copied / "kinds/sparse").stat().st_blocks * 512 < 1 << 20
    assert {os.fsencode(path.name) for path in (copied / "names").iterdir()} == set(NAMES)
    assert differences(tree, copied) == b""
    count = write_listing(first, tmp_path / "SUMS", None, None).files
    found = subprocess.run(["find", ".", "-type", "f", "-printf", "x"], cwd=first, capture_output=True, check=True)
    assert count == len(found.stdout)
    verify_listing(first, tmp_path / "SUMS")
    # In front of the longest path rsync has no room for that of last night: this one file is sent again.
    assert pull(target, tree, second, first).changed == 1
    assert differences(tree, second / str(tree).lstrip("/")) == b""
    assert not [*tmp_path.rglob("pwned"), *Path.home().glob("pwned")], "here, or where a login begins"


def test_store_without_owners_keeps_everything_and_gives_it_back(target: SshTarget, tree: Path, tmp_path: Path) -> None:
    """As a user who may not chown nor make devices; rsync by hand brings it back.

    All but the longest path: with --fake-super rsync names files in full, and has no room for its temporary name.
    """
    subprocess.run(["sh", "-c", 'rm -r "$1"/ddd*', "sh", str(tree)], check=True)
    for path in (target.private_key_file, target.known_hosts_file):
        shutil.copy(path, tmp_path / path.name)
        os.chown(tmp_path / path.name, NOBODY, NOBODY)
    theirs = dataclasses.replace(
        target,
        private_key_file=tmp_path / target.private_key_file.name,
        known_hosts_file=tmp_path / target.known_hosts_file.name,
    )
    night = tmp_path / "night"
    night.mkdir()
    os.chown(night, NOBODY, NOBODY)
    let_through(tmp_path)
    argv = rsync.pull_argv(theirs, Wanted([str(tree)], fake_super=True), night)
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    subprocess.run([*user, *argv], check=True, stdout=subprocess.DEVNULL)
    copied, back = night / str(tree).lstrip("/"), tmp_path / "back"
    assert {os.lstat(path).st_uid for path in (night, copied, copied / "kinds/null")} == {NOBODY}
    assert stat.S_ISREG(os.lstat(copied / "kinds/null").st_mode)
    # --fake-super is for the side that it is given to: here the one that reads.
    give = ["rsync", "-aHAXS", "--numeric-ids", "--rsync-path=rsync --fake-super", "-e", str(ssh_to_here(tmp_path))]
    subprocess.run([*give, f"here:{copied}/", f"{back}/"], check=True)
    assert looks(back) == looks(tree)


def test_store_that_keeps_whole_seconds_links_what_did_not_change(
    target: SshTarget, tree: Path, tmp_path: Path, seconds: Path
) -> None:
    """Else every night would be a whole copy: to the nanosecond, no file there is as old as the client's."""
    assert (keeps_nanoseconds(tmp_path / "new"), keeps_nanoseconds(seconds / "new")) == (True, False)
    first, second, third = (seconds / name for name in "123")
    rsync.pull(target, Wanted([f"{tree}/kinds"], whole_seconds=True), first, deadline_s=60)
    assert differences(tree / "kinds", first / str(tree / "kinds").lstrip("/")) == b""
    inodes = subprocess.run(["find", first, "-type", "f", "-printf", r"%i\n"], capture_output=True, check=True).stdout
    for night, whole_seconds, changed in ((second, True, 0), (third, False, len({*inodes.split()}))):
        wanted = Wanted([f"{tree}/kinds"], whole_seconds=whole_seconds, link_dests=[first])
        assert rsync.pull(target, wanted, night, deadline_s=60).changed == changed


@pytest.fixture
def seconds(tmp_path: Path) -> Iterator[Path]:
    """A file system without room for more of a time: ext4 with inodes of 128 bytes (ext4's inode structure)."""
    image, folder = tmp_path / "seconds.img", tmp_path / "seconds"
    subprocess.run(["truncate", "--size=64M", str(image)], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-I", "128", str(image)], check=True, capture_output=True)
    folder.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def let_through(folder: Path) -> None:
    """Let another user through to a folder of the test's."""
    for parent in (folder, *folder.parents):
        parent.chmod(parent.stat().st_mode | 0o011)


def ssh_to_here(folder: Path) -> Path:
    """What rsync takes for an ssh, and runs its other side on this machine."""
    program = folder / "here"
    program.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    program.chmod(0o755)
    return program


def test_pull_that_was_cut_in_the_middle_goes_on_from_there(target: SshTarget, tmp_path: Path) -> None:
    source, night, new = (tmp_path / name for name in ("client", "night", "new"))
    source.mkdir()
    size = 48 << 20
    subprocess.run(["sh", "-c", f"head -c {size} /dev/urandom > '{source}/large'"], check=True)
    (source / "small").write_text("small")
    wanted = Wanted([str(source)], limit_kib_s=24 << 10)
    cut: list[int] = []

    def cut_ssh(done: int, _total: int | None) -> None:
        if done > size // 4 and not cut:
            cut.extend(ssh_processes())
            for pid in cut:
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(TransferInterrupted):
        rsync.pull(target, wanted, night, deadline_s=60, on_progress=cut_ssh)
    assert cut
    (carried,) = rsync.carry_partial(night, new)
    moved = rsync.pull(target, Wanted([str(source)], link_dests=[night]), new, deadline_s=60)
    assert moved.received_bytes < size * 7 / 8, "what had come was sent again"
    assert differences(source, new / str(source).lstrip("/")) == b""
    assert not carried.exists()


def ssh_processes() -> list[int]:
    """The ssh processes that use this test's key."""
    argv = ["pgrep", "--full", "^ssh .*/id_files"]
    return [int(pid) for pid in subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split()]


def test_file_that_grows_while_it_is_read_is_whole_as_of_some_moment(target: SshTarget, tmp_path: Path) -> None:
    source, night = tmp_path / "client", tmp_path / "night"
    source.mkdir()
    script = 'i=0; while :; do i=$((i + 1)); printf "%019d\\n" $i; done >> "$1"/log'
    writer = subprocess.Popen(["sh", "-c", script, "sh", str(source)])
    try:
        while not (source / "log").exists() or (source / "log").stat().st_size < 1 << 20:
            time.sleep(0.01)
        rsync.pull(target, Wanted([str(source)]), night, deadline_s=60)
    finally:
        writer.kill()
        writer.wait()
    lines = (night / str(source).lstrip("/") / "log").read_bytes().splitlines()
    assert len(lines) > 50_000
    assert [int(line) for line in lines[:-1]] == list(range(1, len(lines))), "a part is missing or torn"
    write_listing(night, tmp_path / "SUMS", None, None)
    verify_listing(night, tmp_path / "SUMS")


def test_key_that_reads_can_do_nothing_else(target: SshTarget, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with pytest.raises(GbsError):
        rsync.send_file(target, tmp_path / "file", str(tmp_path / "written"), deadline_s=30)
    assert not (tmp_path / "written").exists()
    with ssh.connect(target) as shell, pytest.raises(CommandFailed):
        shell.run(["touch", str(tmp_path / "touched")], deadline_s=30)
    assert not (tmp_path / "touched").exists()
    rsync.reach(target, deadline_s=30)
    forward = [*ssh_argv(target), "-o", "ExitOnForwardFailure=yes", "-N", "-R", "0:127.0.0.1:1", target.address]
    assert subprocess.run(forward, capture_output=True, timeout=30, check=False).returncode != 0


def test_short_path_is_there_for_one_program_alone(tmp_path: Path) -> None:
    night, new = tmp_path / "overnight" / "night", tmp_path / "overnight" / "new"
    night.mkdir(parents=True)
    (night / "file").write_text("content")
    new.mkdir()
    before = sorted(PLACE.iterdir())
    short = shorten([night, new], ["web1:/etc"])
    assert short.of(new) == PLACE / "new", "this machine's root may mount"
    subprocess.run(short.argv(["ln", f"{short.of(night)}/file", f"{short.of(new)}/file"]), check=True)
    assert (new / "file").samefile(night / "file"), "one mount, or link(2) would have refused"
    assert sorted(PLACE.iterdir()) == before
    failed = subprocess.run(short.argv(["cat", f"{short.of(new)}/none"]), capture_output=True, text=True, check=False)
    assert str(new / "none") in short.told(failed.stderr)
    needed = shorten([night, new], ["-e", f"ssh -i {PLACE}/id_files"])
    assert needed.argv(["true"]) == ["true"]
    assert needed.of(new) == new


def test_night_that_cannot_be_written_is_told_by_the_path_that_everybody_knows(
    target: SshTarget, tree: Path, tmp_path: Path
) -> None:
    night, new = tmp_path / "overnight" / "night", tmp_path / "overnight" / "new"
    night.mkdir(parents=True)
    new.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", new], check=True)
    try:
        with pytest.raises(GbsError, match=re.escape(str(new))):
            pull(target, tree, new, night)
    finally:
        subprocess.run(["umount", new], check=True)
