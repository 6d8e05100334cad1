"""An image of three disks (EFI, LVM over two, btrfs with subvolumes) becomes a night's: libguestfs looks at it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import guestfs
import pytest

from tasks.drivers import appliance
from tasks.drivers.appliance import DiskFile, UpdateResult
from tasks.errors import ImageFull, ImageUnfit, IntegrityError, SourceRefused, StoreError
from tasks.model import runbook_files
from tasks.model.image_update import BELONGS_TO_DISK, MountedBy
from tasks.model.manifest import DiskRecord, FileRecord
from tasks.model.runbook import Place, Runbook
from tasks.model.runbook_text import HELPERS
from tasks.model.ssh_target import SshTarget
from tests.lab import by_hand
from tests.unit.records import NIGHT, facts, file_system, image_manifest, night_manifest

_MIB = 1 << 20
_MOUNTS = {
    "/": ("/dev/vg0/root", "ext4", ""),
    "/boot": ("/dev/sda2", "ext4", ""),
    "/boot/efi": ("/dev/sda1", "vfat", ""),
    "/var": ("/dev/vg0/var", "xfs", ""),
    "/home": ("/dev/sdc", "btrfs", "/@home"),
    "/srv": ("/dev/sdc", "btrfs", "/@srv"),
}
_KEEP = ("/proc/*", "/bound/*", *BELONGS_TO_DISK)
pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Lab:
    """An image's disks, the file systems in them, and the night that it is to hold."""

    disks: list[DiskFile]
    mounts: list[MountedBy]
    night: Path
    folder: Path

    def overlays(self, name: str) -> list[DiskFile]:
        """Overlays on the disks, as an update gets them."""
        made = []
        for disk in self.disks:
            path = self.folder / f"{name}-{disk.path.stem}.overlay"
            argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", disk.format, "-b", str(disk.path), str(path)]
            subprocess.run(argv, check=True)
            made.append(DiskFile(path, "qcow2"))
        return made

    def another_night(self, name: str, change: Callable[[Path], object]) -> Path:
        """The night with something else in it; unchanged files are hard links."""
        night = self.folder / name
        subprocess.run(["cp", "-al", self.night, night], check=True)
        change(night)
        return night

    def update(self, disks: list[DiskFile], night: Path | None = None) -> UpdateResult:
        """The update."""
        return appliance.update_files(
            disks, self.mounts, night or self.night, keep=_KEEP, deadline_s=600, on_progress=lambda *_: None
        )


@contextlib.contextmanager
def _handle(disks: list[DiskFile], *, readonly: bool) -> Iterator[Any]:
    os.environ.update(appliance.appliance_environment(os.environ))
    handle = guestfs.GuestFS(python_return_dict=True)
    with contextlib.closing(handle):
        for disk in disks:
            handle.add_drive_opts(str(disk.path), format=disk.format, readonly=readonly)
        handle.launch()
        yield handle
        if not readonly:
            handle.umount_all()
            handle.shutdown()


def _mount(handle: Any, *, readonly: bool) -> None:
    for place, (device, _, subvolume) in _MOUNTS.items():
        if place != "/" and not readonly:
            handle.mkdir_p(place)
        options = [*(["ro"] if readonly else []), *([f"subvol={subvolume}"] if subvolume else [])]
        handle.mount_options(",".join(options), device, place)


def _put(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def _lay_out(handle: Any) -> None:
    handle.part_init("/dev/sda", "gpt")
    for first, last in ((2048, 83967), (83968, 288767), (288768, 1024000 - 2048)):
        handle.part_add("/dev/sda", "p", first, last)
    handle.pvcreate("/dev/sda3")
    handle.pvcreate("/dev/sdb")
    handle.vgcreate("vg0", ["/dev/sda3", "/dev/sdb"])
    handle.lvcreate("root", "vg0", 400)  # larger than what is left of either disk
    handle.lvcreate("var", "vg0", 320)
    for device, kind in {device: kind for device, kind, _ in _MOUNTS.values()}.items():
        handle.mkfs(kind, device)
    handle.mount("/dev/sdc", "/")
    for subvolume in ("/@home", "/@srv", "/@srv/machines"):
        handle.btrfs_subvolume_create(subvolume)
    handle.umount_all()


def _grub(uuid: str, kernel: str) -> str:
    return f"search --no-floppy --fs-uuid --set=root {uuid}\nlinux /vmlinuz-{kernel} root=/dev/mapper/vg0-root ro\n"


@pytest.fixture(name="lab", scope="module")
def _lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("image")
    disks = [DiskFile(folder / "vda.raw", "raw"), DiskFile(folder / "vdb.qcow2", "qcow2")]
    disks.append(DiskFile(folder / "vdc.raw", "raw"))
    for disk, size in zip(disks, ("500M", "400M", "256M"), strict=True):
        subprocess.run(["qemu-img", "create", "-q", "-f", disk.format, disk.path, size], check=True)
    tree, night = folder / "tree", folder / "night"
    with _handle(disks, readonly=False) as handle:
        _lay_out(handle)
        uuids = {device: handle.vfs_uuid(device) for device, _, _ in _MOUNTS.values()}
        fstab = "".join(f"UUID={uuids[device]} {place} {kind}\n" for place, (device, kind, _) in _MOUNTS.items())
        same = {
            "etc/fstab": fstab,
            "etc/passwd": "root:x:0:0\n",
            "boot/efi/EFI/debian/grub.cfg": f"search.fs_uuid {uuids['/dev/sda2']} root hd0,gpt2\n",
            "etc/selinux/config": "SELINUX=permissive\n",
        }
        _put(tree, {**same, "boot/vmlinuz-1": "one", "boot/grub/grub.cfg": _grub(uuids["/dev/sda2"], "1")})
        _put(tree, {"boot/grub/i386-pc/core": "the image's", "bound/hidden": "the image's", "boot/efi/EFI/old/x": "x"})
        _put(tree, {"srv/machines/own": "the image's", "srv/gone": "x", "home/gone": "x", "var/gone": "x"})
        _put(tree, {"boot/efi/EFI/Boot/BOOTX64.EFI": "one", "opt/folder/inside": "x"})
        _put(tree, {"srv/machines.tmp": "left out", "boot/efi/EFI/left.tmp": "left out"})
        (tree / "proc").mkdir()
        subprocess.run(["tar", "-C", tree, "--numeric-owner", "-cf", folder / "a.tar", "."], check=True)
        _mount(handle, readonly=False)
        handle.tar_in(str(folder / "a.tar"), "/")
    _put(night, {**same, "boot/vmlinuz-2": "two", "boot/grub/grub.cfg": _grub(uuids["/dev/sda2"], "2")})
    _put(
        night,
        {"boot/grub/i386-pc/core": "never sent", "bound/shown": "it lies elsewhere", "srv/new": "s", "home/new": "h"},
    )
    _put(night, {"boot/efi/EFI/Boot/BOOTX64.EFI": "two", "boot/efi/EFI/Long Näme": "n", "var/new": "v"})
    os.utime(night / "boot/efi/EFI/Boot/BOOTX64.EFI", (1_700_000_001, 1_700_000_001))  # vfat has even seconds
    (night / "boot/efi/EFI/link").symlink_to("/etc/passwd")  # and no links
    os.chown(night / "boot/efi/EFI/Long Näme", 12, 34)
    for name in ("proc", "srv/machines", "dev"):
        (night / name).mkdir()
    (night / "opt").mkdir()
    (night / "opt/folder").symlink_to(folder)
    (night / "opt/up").symlink_to("../../../../etc/passwd")
    os.mknod(night / "dev/null", 0o20666, os.makedev(1, 3))
    os.link(night / "home/new", night / "home/again")
    mounts = [MountedBy(place, uuids[dev], kind, sub) for place, (dev, kind, sub) in _MOUNTS.items()]
    return Lab(disks, mounts, night, folder)


def _found(handle: Any) -> dict[str, str]:
    """Every file of the image by libguestfs, with its text."""
    paths = [f"/{name}" for name in handle.find("/") if "lost+found" not in name]
    return {path: handle.cat(path) for path in paths if handle.is_file(path)}


def _of_night(lab: Lab) -> dict[str, str]:
    """What the image has after an update: the night's files, and those of its own that are kept."""
    own = {"/boot/grub/i386-pc/core": "the image's", "/bound/hidden": "the image's", "/srv/machines/own": "the image's"}
    files = (path for path in lab.night.rglob("*") if path.is_file() and not path.is_symlink())
    wanted = {f"/{path.relative_to(lab.night)}": path.read_text() for path in files}
    del wanted["/bound/shown"]
    return {**wanted, **own}


def test_all_disks_hold_the_night_and_a_second_update_sends_nothing(lab: Lab) -> None:
    before = [disk.path.read_bytes() for disk in lab.disks]
    image = lab.overlays("night")
    first, second = lab.update(image), lab.update(image)
    print(first, second)
    assert first.files_deleted >= 5
    assert (second.files_changed, second.files_deleted) == (0, 0)
    assert first.warnings == second.warnings
    assert "labels" in first.warnings[0]
    assert [disk.path.read_bytes() for disk in lab.disks] == before
    with _handle(image, readonly=True) as handle:
        _mount(handle, readonly=True)
        found = _found(handle)
        links = {path: handle.readlink(path) for path in ("/opt/folder", "/opt/up")}
        assert handle.is_chardev("/dev/null")
        assert handle.lstatns("/home/new")["st_ino"] == handle.lstatns("/home/again")["st_ino"]
        assert handle.vfs_type("/dev/sda1") == "vfat"
        handle.umount_all()
        assert handle.fsck("ext4", "/dev/vg0/root") == 0
        # The kernel that GRUB's menu names is there, on the partition that its loader names.
        handle.mount_ro("/dev/sda2", "/")
        assert handle.ls("/") == ["efi", "grub", "lost+found", "vmlinuz-2"]
        assert f"--set=root {handle.vfs_uuid('/dev/sda2')}\nlinux /vmlinuz-2" in handle.cat("/grub/grub.cfg")
    assert found == {**_of_night(lab), "/.autorelabel": ""}
    assert links == {"/opt/folder": str(lab.folder), "/opt/up": "../../../../etc/passwd"}


def _runbook(lab: Lab) -> Runbook:
    """Of a client that has these file systems, a bind mount, and a pattern of what is left out anywhere."""
    rows = []
    for mount in lab.mounts:
        source = f"/dev/x[{mount.subvolume}]" if mount.subvolume else "/dev/x"
        rows.append(file_system(mount.mountpoint, source, mount.fstype, mount.uuid))
    kept: Any = {"file": "vda.raw", "format": "raw", "source": "/x", "source_format": "qcow2", "virtual_size_bytes": 1}
    host = SshTarget("kvm1", "", "root", 22, Path("/key"), Path("/known"))
    return Runbook(
        made=NIGHT,
        vm="web1",
        client="web1",
        xml="",
        store="/srv/gbs",
        permanent="/nowhere",
        image=image_manifest(
            disks=[DiskRecord(target=target, **kept) for target in ("vda", "vdb", "vdc")],
            files=[FileRecord(path="vda.raw", size_bytes=1, sha256="0" * 64)],
        ),
        image_place=Place("STORE", "image"),
        night=night_manifest(NIGHT, paths=tuple(_MOUNTS), excluded=("/proc/*", "*.tmp")),
        night_name="overnight",
        night_place=Place("STORE", "night"),
        bringing=None,
        facts=facts(*rows, bind_mounts=("/bound",)),
        host=host,
        libvirt_uri="qemu:///system",
        image_folder="/var/lib/libvirt/images",
        guest=None,
    )


def test_runbook_makes_of_the_disks_what_an_update_makes_and_leaves_alone_what_that_does(lab: Lab) -> None:
    image, work = [], lab.folder / "work"
    work.mkdir()
    for number, disk in enumerate(lab.overlays("runbook"), 1):
        image.append(DiskFile(disk.path.rename(work / f"disk-{number}.qcow2"), "qcow2"))
    (lab.folder / "by-hand").mkdir()
    (lab.folder / "by-hand/data").symlink_to(lab.night)
    head = f"set -euo pipefail\nWORK={work} NIGHT={lab.folder}/by-hand\n"
    done = by_hand.run(f"{head}{HELPERS}\n{runbook_files.update(_runbook(lab))}\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LOOK" not in done.stderr
    with _handle(image, readonly=True) as handle:
        _mount(handle, readonly=True)
        found = _found(handle)
    left = {"/srv/machines.tmp": "left out", "/boot/efi/EFI/left.tmp": "left out"}
    assert found == {**_of_night(lab), **left}


def _append(path: Path, text: str) -> None:
    content = path.read_text() + text
    path.unlink()
    path.write_text(content)


def test_changed_fstab_that_the_image_cannot_boot_with_is_refused_and_nothing_written(lab: Lab) -> None:
    night = lab.another_night("fstab", lambda root: _append(root / "etc/fstab", "UUID=changed /data xfs\n"))
    image = lab.overlays("fstab")
    before = [disk.path.read_bytes() for disk in image]
    with pytest.raises(ImageUnfit, match=r"UUID=changed \(/data\), named by /etc/fstab of the night"):
        lab.update(image, night)
    assert [disk.path.read_bytes() for disk in image] == before


def test_overwritten_superblock_is_said_in_one_line(lab: Lab) -> None:
    image = lab.overlays("superblock")
    argv = ["qemu-io", "-f", "qcow2", "-c", f"write -q -P 0 {83968 * 512} 64k", str(image[0].path)]
    subprocess.run(argv, check=True)
    with pytest.raises(IntegrityError, match=r"/boot \(ext4\) with UUID") as raised:
        lab.update(image)
    assert "\n" not in str(raised.value)


def test_night_that_cannot_fit_is_refused_with_file_system_needed_and_free(lab: Lab) -> None:
    night = lab.another_night("large", lambda root: (root / "boot/large").write_bytes(bytes(1) * 120 * _MIB))
    with pytest.raises(ImageFull) as raised:
        lab.update(lab.overlays("large"), night)
    _, where, needed, free = raised.value.args
    assert where == "/boot (ext4)"
    assert needed > 120 * _MIB > free > 80 * _MIB
    # What is left of the image's takes room, too: that shows only when it is written.
    (night / "boot/large").unlink()
    (night / "boot/large").write_bytes(os.urandom(free - _MIB))
    with pytest.raises(ImageFull) as raised:
        lab.update(lab.overlays("larger"), night)
    assert raised.value.args[1] == "/boot (ext4)"


def _replace_by_link(root: Path) -> None:
    subprocess.run(["rm", "-r", root / "var"], check=True)
    (root / "var").symlink_to("/etc")


def test_mount_point_that_is_a_link_in_the_night_is_refused(lab: Lab) -> None:
    with pytest.raises(SourceRefused, match="/var is no folder"):
        lab.update(lab.overlays("link"), lab.another_night("link", _replace_by_link))


def test_night_that_cannot_be_read_is_no_damage_of_the_image(lab: Lab, tmp_path: Path) -> None:
    """It lies on a device that loses all but its first blocks, and so the file that is not in memory."""
    device, night = tmp_path / "device", tmp_path / "night"
    device.touch()
    os.truncate(device, 32 * _MIB)
    night.mkdir()
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    subprocess.run(["mount", "-o", "loop", device, night], check=True)
    try:
        (night / "lost+found").rmdir()
        subprocess.run(["cp", "-a", f"{lab.night}/.", night], check=True)
        (night / "home/large").write_bytes(os.urandom(_MIB))
        # Written to, the device would get its blocks back, empty.
        subprocess.run(["mount", "-o", "remount,ro", night], check=True)
        subprocess.run(["tar", "-C", night, "-cf", tmp_path / "in-memory", "."], check=True)
        with (night / "home/large").open("rb") as file:
            os.truncate(device, 64 << 10)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with pytest.raises(StoreError, match=r"cannot be read.*: .*Input/output error"):
            lab.update(lab.overlays("unread"), night)
    finally:
        subprocess.run(["umount", night], check=True)
