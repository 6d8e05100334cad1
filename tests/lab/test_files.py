"""Trees that rsync pulls, through a key that can do nothing else; judged by find, getfacl, getfattr, getcap, rsync."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.drivers import rsync, ssh
from tasks.drivers.digest import verify_listing, write_listing
from tasks.errors import CommandFailed, GbsError
from tasks.model.ssh_target import SshTarget, ssh_argv
from tests.lab.hostile_tree import NAMES, make_tree
from tests.lab.sshd import Sshd, make_key

READ_ONLY = 'restrict,command="rrsync -ro /"'


@pytest.fixture(scope="module")
def target(lab_folder: Path) -> Iterator[SshTarget]:
    """This machine, through a key that is restricted to rsync's reading."""
    key = make_key(lab_folder / "id_files", "gbs tests")
    sshd = Sshd(lab_folder / "files-sshd", f"{READ_ONLY} {key}")
    sshd.start()
    known = lab_folder / "known_files"
    known.write_text(sshd.known_hosts_line + "\n")
    yield SshTarget("files", "127.0.0.1", "root", sshd.port, lab_folder / "id_files", known)
    sshd.stop()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "client $(touch pwned)"
    root.mkdir()
    make_tree(root)
    return root


def looks(root: Path) -> bytes:
    """What find, getfacl, getfattr and getcap say of all of it; sizes of folders are the file system's own."""
    script = r"""
        find . -mindepth 1 \( -type d -printf '%P %y %m %U %G %T@\0' -o -printf '%P %y %m %U %G %s %T@ %n %l\0' \) |
            sort -z | tr '\0' '\n'
        find . -type f -links +1 -printf '%i %P\n' | sort | awk '{ print $1 == last, $2; last = $1 }'
        find . -not -path '*ddd/*' -print0 | sort -z | xargs -0 getfacl -n -p
        find . -not -path '*ddd/*' -print0 | sort -z | xargs -0 getfattr -h -d -m - -e hex
        getcap -r kinds
    """
    return subprocess.run(["bash", "-c", script], cwd=root, capture_output=True, check=True).stdout


def differences(tree: Path, copied: Path) -> bytes:
    """What rsync would still have to do, by checksum."""
    argv = ["rsync", "-aHAXSn", "--checksum", "--itemize-changes", "--delete", f"{tree}/", f"{copied}/"]
    return subprocess.run(argv, capture_output=True, check=True).stdout


def pull(target: SshTarget, tree: Path, night: Path, last: Path | None = None) -> rsync.Transferred:
    return rsync.pull(target, [str(tree)], night, link_dests=[last] if last else [], deadline_s=120)


def test_every_file_comes_as_it_is_and_an_unchanged_one_is_linked(
    target: SshTarget, tree: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    pull(target, tree, first)
    copied = first / str(tree).lstrip("/")
    assert looks(copied) == looks(tree)
    assert (copied / "kinds/sparse").stat().st_blocks * 512 < 1 << 20
    assert {os.fsencode(path.name) for path in (copied / "names").iterdir()} == set(NAMES)
    assert differences(tree, copied) == b""
    count, _ = write_listing(first, tmp_path / "SUMS", None, None)
    found = subprocess.run(["find", ".", "-type", "f", "-printf", "x"], cwd=first, capture_output=True, check=True)
    assert count == len(found.stdout)
    verify_listing(first, tmp_path / "SUMS")
    # In front of the longest path rsync has no room for that of last night: this one file is sent again.
    assert pull(target, tree, second, first).changed == 1
    assert differences(tree, second / str(tree).lstrip("/")) == b""
    assert not list(tmp_path.rglob("pwned"))


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
