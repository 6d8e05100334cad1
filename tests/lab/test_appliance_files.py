"""Files out of an image are what the guest had, also from its second file system; the image is only read."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any

import guestfs
import pytest

from tasks.drivers import appliance, appliance_files
from tasks.drivers.appliance import DiskFile
from tasks.drivers.appliance_listing import files_in
from tasks.drivers.digest import sha256_file
from tasks.errors import CommandFailed, IntegrityError, NothingToRecover, StoreFull
from tasks.model.file_history import Found
from tests.lab.hostile_tree import NAMES, looks, make_tree

pytestmark = pytest.mark.timeout(900)
FSTAB = "/dev/sda1 / ext4 defaults 0 1\n/dev/sda2 /srv ext4 defaults 0 2\n"


def make_guest(image: Path, tree: Path) -> None:
    """A disk with the least that is an operating system, and a tree on a second file system."""
    image.touch()
    os.truncate(image, 512 << 20)
    subprocess.run(["tar", "--xattrs", "--acls", "-C", tree, "-cf", f"{tree}.tar", "."], check=True)
    os.environ.update(appliance.appliance_environment(os.environ))
    handle: Any = guestfs.GuestFS(python_return_dict=True)
    with contextlib.closing(handle):
        handle.add_drive_opts(str(image), format="raw")
        handle.launch()
        handle.part_init("/dev/sda", "mbr")
        handle.part_add("/dev/sda", "p", 2048, 204799)
        handle.part_add("/dev/sda", "p", 204800, -2048)
        for part, place in (("/dev/sda1", "/"), ("/dev/sda2", "/srv")):
            handle.mkfs("ext4", part)
            if place != "/":
                handle.mkdir(place)
            handle.mount(part, place)
        for folder in ("/etc", "/bin", "/usr", "/usr/lib", "/var"):
            handle.mkdir(folder)
        handle.write("/etc/fstab", FSTAB)
        handle.write("/etc/os-release", 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n')
        handle.write("/etc/hostname", "web1\n")
        handle.ln_s("usr/lib", "/lib")
        handle.ln_s("/etc", "/srv/away")
        handle.tar_in(f"{tree}.tar", "/srv", xattrs=True, acls=True)
        handle.umount_all()
        handle.shutdown()


def by_sha256sum(folder: Path) -> dict[bytes, str]:
    """Name → sha256 of the regular files below a folder."""
    argv = ["find", ".", "-type", "f", "-exec", "sha256sum", "-z", "--", "{}", "+"]
    said = subprocess.run(argv, cwd=folder, capture_output=True, check=True).stdout
    return {line[68:]: line[:64].decode() for line in said.split(b"\0")[:-1]}


def out(image: Path, paths: list[str], destination: Path, *, fake_super: bool = False) -> tuple[str, ...]:
    destination.mkdir(exist_ok=True)
    common: Any = {"deadline_s": 600, "on_progress": lambda *_: None}
    done = appliance_files.copy_out([DiskFile(image, "raw")], paths, destination, fake_super=fake_super, **common)
    return done.unmounted


def test_files_come_out_as_the_guest_has_them(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    make_tree(tree)
    # A socket is in no tar, and one path is as long as Linux allows without the place that it goes to.
    (tree / "kinds/socket").unlink()
    subprocess.run("rm -r ./d*d", shell=True, cwd=tree, check=True)
    # With a label tar writes a byte too many.
    subprocess.run(["setfattr", "-x", "security.selinux", tree / "kinds/empty"], check=True)
    image = tmp_path / "vda.raw"
    make_guest(image, tree)
    before = sha256_file(image)
    assert out(image, ["srv/kinds", "srv/names", "etc/hostname"], tmp_path / "out") == ()
    found = tmp_path / "out"
    assert (found / "etc/hostname").read_text() == "web1\n"
    assert sorted(os.listdir(found / "etc")) == ["hostname"]
    assert sorted(os.listdir(os.fsencode(found / "srv/names"))) == sorted(NAMES)
    subprocess.run(["rm", "-r", *(str(path) for path in tree.glob("folder*"))], check=True)
    expected, got = looks(tree).splitlines(), looks(found / "srv").splitlines()
    assert [line for line in got if line not in expected] == []
    assert len(got) == len(expected)
    assert sha256_file(image) == before
    listed = files_in([DiskFile(image, "raw")], below="/srv/names", deadline_s=600, on_progress=lambda *_: None)
    assert listed.unmounted == {}
    assert {os.fsencode(path)[11:]: row.sha256 for path, row in listed.files.items()} == by_sha256sum(tree / "names")
    named = files_in([DiskFile(image, "raw")], pattern="hostname", deadline_s=600, on_progress=lambda *_: None)
    assert named.files == {"/etc/hostname": Found(sha256_file(found / "etc/hostname"), 5)}
    with pytest.raises(NothingToRecover, match="/srv/away is /etc: ask for the path there"):
        out(image, ["srv/away/fstab"], tmp_path / "refused")


def test_files_that_cannot_be_put_where_they_should_go_say_why(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(os.urandom(4 << 20))
    os.chown(tree / "large", 12, 34)
    image, small, closed = tmp_path / "vda.raw", tmp_path / "small", tmp_path / "closed"
    make_guest(image, tree)
    for folder, options in ((small, "size=2M"), (closed, "ro")):
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    try:
        with pytest.raises(StoreFull) as raised:
            out(image, ["srv/large"], small)
        assert raised.value.args[1] >= 4 << 20
        assert os.listdir(small) == []
        with pytest.raises(CommandFailed, match=r"rsync out of .*vda.raw failed with status .* Read-only file system"):
            out(image, ["srv/large"], closed)
    finally:
        for folder in (small, closed):
            subprocess.run(["umount", folder], check=True)
    out(image, ["srv/large"], tmp_path / "fake", fake_super=True)
    kept = tmp_path / "fake/srv/large"
    assert (kept.stat().st_uid, kept.stat().st_gid) == (0, 0)
    assert os.getxattr(kept, "user.rsync.%stat").endswith(b" 12:34")


def test_disk_without_a_file_system_is_an_error(tmp_path: Path) -> None:
    image = tmp_path / "vda.raw"
    image.touch()
    os.truncate(image, 8 << 20)
    with pytest.raises((IntegrityError, CommandFailed), match="file systems"):
        out(image, ["etc"], tmp_path / "out")
