"""A copy of a template becomes a client's disks: lsblk then says of them what it said of the client's own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import guestfs
import pytest

from tasks.drivers import adoption, appliance
from tasks.drivers.appliance import DiskFile
from tasks.model.adoption import adoption as adoption_of
from tasks.model.boot_repair import repair_of
from tasks.model.facts import FACTS, Facts, assemble
from tasks.model.facts_network import Interface
from tasks.model.image_update import update_plan
from tasks.model.shape import shape_of_facts
from tests.unit.records import night_manifest

pytestmark = pytest.mark.timeout(1800)
_MIB = 1 << 20
_BIOS_BOOT, _ESP = "21686148-6449-6E6F-744E-656564454649", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_LVM, _SWAP = "E6D6D379-F507-44C2-A23C-238F2A3DF928", "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
_ENDS_MIB = (1, 2, 40, 140, 180, 700)
_RELEASE = 'ID=debian\nNAME="Debian"\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n'


@dataclass(frozen=True)
class _Machine:
    """A system's disks and what is said of them."""

    disks: tuple[Path, Path]
    lsblk: list[dict[str, Any]]
    facts: Facts
    tree: Path


@contextlib.contextmanager
def _handle(disks: Sequence[Path], *, readonly: bool, kind: str = "raw") -> Iterator[Any]:
    os.environ.update(appliance.appliance_environment(os.environ))
    handle = guestfs.GuestFS(python_return_dict=True)
    with contextlib.closing(handle):
        for disk in disks:
            handle.add_drive_opts(str(disk), format=kind, readonly=readonly)
        handle.launch()
        yield handle
        if not readonly:
            handle.umount_all()
            handle.shutdown()


def _make(handle: Any, folder: Path, first: str, second: str, names: tuple[str, str, str], label: str) -> _Machine:
    """A system on the disks `first`, with all that a partition may hold, and `second`, with a dos table and btrfs."""
    tree, (group, root, var) = folder / f"tree{label}", names
    _partition(handle, first, second)
    root_path, var_path = f"/dev/{group}/{root}", f"/dev/{group}/{var}"
    handle.pvcreate(f"{first}5")
    handle.vgcreate(group, [f"{first}5"])
    handle.lvcreate(root, group, 200)
    handle.lvcreate(var, group, 304)
    handle.mkfs("vfat", f"{first}2", label=f"E{label}".upper())
    handle.mkfs("ext4", f"{first}3", label=f"boot{label}")
    handle.mkswap(f"{first}4", label=f"swap{label}")
    handle.mkfs("ext4", root_path, label=f"root{label}")
    handle.mkfs("xfs", var_path, label=f"var{label}")
    handle.mkfs("btrfs", f"{second}1", label=f"data{label}")
    _run(handle, f"sgdisk -c 3:'Boot {label}' {first}")
    ids = {what: handle.vfs_uuid(f"{first}{number}") for what, number in (("boot", 3), ("swap", 4))}
    ids |= {"srv": handle.vfs_uuid(f"{second}1"), "esp": handle.part_get_gpt_guid(first, 2).lower()}
    _write_tree(tree, label, {**ids, "root": root_path})
    places = {"/": root_path, "/boot": f"{first}3", "/boot/efi": f"{first}2", "/var": var_path, "/srv": f"{second}1"}
    for place, device in places.items():
        if place != "/":
            handle.mkdir_p(place)
        handle.mount(device, place)
    archive = tree.with_suffix(".tar")
    subprocess.run(["tar", "-C", str(tree), "--exclude=./boot/efi/*", "-cf", str(archive), "."], check=True)
    handle.tar_in(str(archive), "/")
    handle.mkdir_p("/boot/efi/EFI/debian")
    for file in (tree / "boot/efi/EFI/debian").iterdir():
        handle.upload(str(file), f"/{file.relative_to(tree)}")
    said = _devices(handle, first, second)
    machine = _Machine((folder / f"{first[5:]}.raw", folder / f"{second[5:]}.raw"), said, _facts(handle, said), tree)
    handle.umount_all()
    return machine


def _partition(handle: Any, first: str, second: str) -> None:
    handle.part_init(first, "gpt")
    for start, end in itertools.pairwise(_ENDS_MIB):
        handle.part_add(first, "p", start * 2048, end * 2048 - 1)
    for number, kind in ((1, _BIOS_BOOT), (2, _ESP), (4, _SWAP), (5, _LVM)):
        handle.part_set_gpt_type(first, number, kind)
    handle.part_init(second, "mbr")
    handle.part_add(second, "p", 2048, 190 * 2048)


def _write_tree(tree: Path, label: str, ids: dict[str, str]) -> None:
    """The system's files, as its night has them; fstab finds its disks in five ways."""
    for folder in ("etc/systemd", "bin", "usr", "boot/efi/EFI/debian", "boot/grub", "var/lib", "srv"):
        (tree / folder).mkdir(parents=True)
    (tree / "bin/bash").write_bytes(Path("/bin/true").read_bytes())
    (tree / "etc/os-release").write_text(_RELEASE)
    (tree / "etc/debian_version").write_text("12.0\n")
    (tree / "etc/hostname").write_text(f"client{label}\n")
    (tree / "etc/fstab").write_text(
        f"{ids['root']} / ext4 defaults 0 1\n"
        f"UUID={ids['boot']} /boot ext4 defaults 0 2\n"
        f"PARTUUID={ids['esp']} /boot/efi vfat umask=0077 0 1\n"
        f"LABEL=var{label} /var xfs defaults 0 2\n"
        f"UUID={ids['srv']} /srv btrfs defaults 0 0\n"
        f"UUID={ids['swap']} none swap sw 0 0\n"
    )
    (tree / "boot/efi/EFI/debian/shimx64.efi").write_text(f"shim of {label}")
    (tree / "boot/efi/EFI/debian/grubx64.efi").write_text(f"grub of {label}")
    (tree / "var/lib/state").write_text(label)
    (tree / "srv/data").write_text(label)


def _said(handle: Any, command: tuple[str, ...]) -> str:
    """What a tool in the appliance says, as if the disks were its own."""
    script = command[2] if command[0] == "sh" else " ".join(command)
    return _run(handle, script).replace('"/sysroot/', '"/').replace('"/sysroot"', '"/"')


def _run(handle: Any, script: str) -> str:
    """What a script in the appliance says; disks are called as libguestfs calls them, by the order they were added in.

    The appliance's kernel may call them otherwise, its own disk among them.
    """
    looked = handle.debug("sh", ["for path in /dev/disk/by-path/*:0; do echo $path $(readlink -f $path); done"])
    real = {}
    for path, device in (line.split() for line in looked.splitlines()):
        real[f"sd{chr(ord('a') + int(path.split(':')[-2]))}"] = device.removeprefix("/dev/")
    called = {name: own for own, name in real.items()}
    script = re.sub(r"/dev/(sd[a-z])", lambda found: f"/dev/{real[found[1]]}", script)
    said = str(handle.debug("sh", [script]))
    return re.sub(r"\b(sd[a-z])(?=\d*\b)", lambda found: called.get(found[1], found[1]), said)


def _devices(handle: Any, first: str, second: str) -> list[dict[str, Any]]:
    """What lsblk says of two disks, which are called sda and sdb in it.

    lsblk tells file systems by udev's database, which learns of a new one some time after mkfs has ended.
    """
    _run(handle, "udevadm trigger --subsystem-match=block && udevadm settle")
    text = _said(handle, FACTS["block_devices"].command)
    rows = [row for row in json.loads(text)["blockdevices"] if row["name"] in (first[5:], second[5:])]
    text = json.dumps(sorted(rows, key=lambda row: row["name"]))
    for disk, name in ((first, "sda"), (second, "sdb")):
        text = text.replace(f'"{disk[5:]}', f'"{name}')
    found: list[dict[str, Any]] = json.loads(text)
    return found


def _facts(handle: Any, lsblk: list[dict[str, Any]]) -> Facts:
    """Facts by the client's own commands, run in the appliance."""
    found = json.loads(_said(handle, FACTS["file_systems"].command))["filesystems"]
    # The appliance's own root is an ext2.
    own = [row for row in found if not (row["target"] == "/" and row["fstype"] == "ext2")]
    values = {
        "block_devices": FACTS["block_devices"].parse(json.dumps({"blockdevices": lsblk})),
        "file_systems": FACTS["file_systems"].parse(json.dumps({"filesystems": own})),
        "os_release": {"ID": "debian"},
        "kernel": "6.1",
        "architecture": "x86_64",
        "hostname": "client",
        "efi": True,
        "interfaces": (Interface(name="eno1", mac="3c:ec:ef:00:00:01", mtu=1500),),
    }
    return assemble(datetime(2026, 1, 1, tzinfo=UTC), values)


def _machines(folder: Path) -> tuple[_Machine, _Machine]:
    """A client, and a template of its shape with other names."""
    disks = [folder / f"{name}.raw" for name in ("sda", "sdb", "sdc", "sdd")]
    for disk, size in zip(disks, (720 * _MIB, 200 * _MIB) * 2, strict=True):
        with disk.open("wb") as file:
            file.truncate(size)
    with _handle(disks, readonly=False) as handle:
        client = _make(handle, folder, "/dev/sda", "/dev/sdb", ("vg-0", "root", "var"), "C")
        return client, _make(handle, folder, "/dev/sdc", "/dev/sdd", ("tpl", "slash", "state"), "T")


def _overlays(machine: _Machine, folder: Path) -> list[DiskFile]:
    made = []
    for disk in machine.disks:
        overlay = folder / f"{disk.name}.overlay"
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(disk), "-F", "raw", str(overlay)]
        subprocess.run(argv, check=True)
        made.append(DiskFile(overlay, "qcow2"))
    return made


def test_a_copy_of_the_template_becomes_the_client(tmp_path: Path) -> None:
    client, template = _machines(tmp_path)
    disks = _overlays(template, tmp_path)
    plan = update_plan(client.facts, night_manifest(paths=tuple(row.mountpoint for row in client.facts.file_systems)))
    wanted = adoption_of(client.facts, shape_of_facts(template.facts), client="c", called="t")
    repair = replace(repair_of(client.facts, was_physical=True), drivers=())
    said: list[str] = []
    common: Any = {"image": "T", "deadline_s": 900, "on_progress": lambda text, _part: said.append(text)}

    adoption.adopt(disks, wanted, **common)
    appliance.update_files(disks, plan.mounts, client.tree, keep=plan.keep, **common)
    made = adoption.make_bootable(disks, plan.mounts, repair, **common)

    assert len(made.done) == 3  # shim and GRUB at the removable path, the name of the card
    with _handle([disk.path for disk in disks], readonly=True, kind="qcow2") as handle:
        (root,) = handle.inspect_os()
        places = handle.inspect_get_mountpoints(root)
        found = {"/": "/dev/vg-0/root", "/boot": "/dev/sda3", "/var": "/dev/vg-0/var", "/srv": "/dev/sdb1"}
        assert places == found  # libguestfs resolves no PARTUUID
        for place, device in sorted({**found, "/boot/efi": "/dev/sda2"}.items()):
            handle.mount_ro(device, place)
        assert _devices(handle, "/dev/sda", "/dev/sdb") == client.lsblk
        assert handle.inspect_get_hostname(root) == "clientC"
        assert handle.cat("/var/lib/state") == handle.cat("/srv/data") == "C"
        assert handle.cat("/boot/efi/EFI/BOOT/BOOTX64.EFI") == "shim of C"
        assert "Name=eno1" in handle.cat("/etc/systemd/network/10-gbs-eno1.link")
        handle.umount_all()
        for check in (
            "e2fsck -fn /dev/sda3",
            "e2fsck -fn /dev/vg-0/root",
            "xfs_repair -n /dev/vg-0/var",
            "btrfs check --readonly /dev/sdb1",
            "fsck.fat -n /dev/sda2",
            "sgdisk -v /dev/sda",
            "lvm vgck vg-0",
        ):
            _run(handle, f"{check} 2>&1")
