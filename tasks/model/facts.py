"""Facts about a client: what its own tools say of its disks, file systems and system, parsed.

A fact is a command and a pure parser.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

BootMode = Literal["bios", "uefi", "unknown"]
REMOTE_OR_VIRTUAL = frozenset(
    (
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs"),
        *("fusectl", "hugetlbfs", "iso9660", "mqueue", "nsfs", "overlay", "proc", "pstore", "ramfs", "rpc_pipefs"),
        *("securityfs", "selinuxfs", "squashfs", "sysfs", "tmpfs", "tracefs"),
        *("nfsd", "resctrl", "rootfs", "smackfs", "fuse", "fuse.gvfsd-fuse", "fuse.sshfs"),
        *("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs", "afs"),
    )
)
"""File systems that hold nothing of the client's own."""


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True)


class BlockDevice(_Fact):
    """A row of lsblk: sizes in bytes, `parent` by kernel name."""

    name: str
    type: str
    size_bytes: int
    parent: str | None = None
    fstype: str | None = None
    uuid: str | None = None
    label: str | None = None
    partition_type: str | None = None
    partition_table: str | None = None
    mountpoints: tuple[str, ...] = ()


class FileSystem(_Fact):
    """A mounted local file system."""

    mountpoint: str
    source: str
    fstype: str
    uuid: str | None = None
    size_bytes: int
    used_bytes: int


class LogicalVolume(_Fact):
    """An LVM logical volume."""

    vg: str
    lv: str
    size_bytes: int


class Facts(_Fact):
    """What a client was like on one night."""

    collected: datetime
    hostname: str
    os_id: str
    os_version: str
    os_name: str
    kernel: str
    architecture: str
    boot_mode: BootMode
    machine_id: str
    block_devices: tuple[BlockDevice, ...]
    file_systems: tuple[FileSystem, ...]
    logical_volumes: tuple[LogicalVolume, ...] = ()
    packages: tuple[str, ...] = ()
    reports: dict[str, str] = {}
    """What the tools of a system that is no Linux say, by topic."""


@dataclass(frozen=True)
class Fact:
    """A command to run on the client and the parser of its output; `optional` ones may be missing there."""

    command: tuple[str, ...]
    parse: Callable[[str], Any]
    optional: bool = False


def parse_block_devices(text: str) -> tuple[BlockDevice, ...]:
    """Rows of `lsblk -J -b` with the columns of FACTS; loop and RAM devices and optical drives are left out.

    A device with several parents (md, multipath) has a row below each.
    """
    found: list[BlockDevice] = []

    def walk(row: Mapping[str, Any], parent: str | None) -> None:
        memory = row["type"] == "disk" and row["name"].startswith(("ram", "zram", "nbd"))
        if row["type"] in ("loop", "rom") or memory:
            return
        points = row.get("mountpoints") or [row.get("mountpoint")]
        found.append(
            BlockDevice(
                name=row["name"],
                type=row["type"],
                size_bytes=int(row["size"]),
                parent=parent,
                fstype=row.get("fstype"),
                uuid=row.get("uuid"),
                label=row.get("label"),
                partition_type=row.get("parttype"),
                partition_table=row.get("pttype"),
                mountpoints=tuple(sorted(point for point in points if point)),
            )
        )
        for child in row.get("children", ()):
            walk(child, row["name"])

    for row in json.loads(text)["blockdevices"]:
        walk(row, None)
    return tuple(found)


def parse_file_systems(text: str) -> tuple[FileSystem, ...]:
    """Rows of `findmnt -J -b -l`: real local file systems, one row a mount point, bind mounts left out.

    findmnt shows bind mounts and btrfs subvolumes alike as `device[/folder]`. A subvolume is kept: rsync's
    --one-file-system does not descend into it. So is a folder whose device is mounted whole nowhere.
    """
    rows, found = {}, json.loads(text)["filesystems"] if text.strip() else []
    whole = {row["source"] for row in found}
    for row in found:
        if row["fstype"] in REMOTE_OR_VIRTUAL or row["fstype"].startswith("fuse."):
            continue
        device, bracket, folder = row["source"].partition("[")
        subvolume = f"subvol={folder.removesuffix(']')}" in (row.get("options") or "").split(",")
        if bracket and device in whole and not subvolume:
            continue
        rows[row["target"]] = FileSystem(
            mountpoint=row["target"],
            source=row["source"],
            fstype=row["fstype"],
            uuid=row.get("uuid"),
            size_bytes=int(row.get("size") or 0),
            used_bytes=int(row.get("used") or 0),
        )
    return tuple(rows[target] for target in sorted(rows))


def parse_logical_volumes(text: str) -> tuple[LogicalVolume, ...]:
    """Rows of `lvs --reportformat json --units b --nosuffix`."""
    report = json.loads(text)["report"][0]["lv"] if text.strip() else []
    rows = (LogicalVolume(vg=row["vg_name"], lv=row["lv_name"], size_bytes=int(row["lv_size"])) for row in report)
    return tuple(sorted(rows, key=lambda row: (row.vg, row.lv)))


def parse_os_release(text: str) -> dict[str, str]:
    """The assignments of /etc/os-release, unquoted (os-release(5))."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, value in pairs}


def parse_packages(text: str) -> tuple[str, ...]:
    """Sorted `name version` lines."""
    return tuple(sorted(line.strip() for line in text.splitlines() if line.strip()))


def _stripped(text: str) -> str:
    return text.strip()


_LSBLK = "lsblk -J -b -o NAME,TYPE,SIZE,FSTYPE,UUID,LABEL,PARTTYPE"
LSBLK = f"{_LSBLK},PTTYPE,MOUNTPOINTS 2> /dev/null || {_LSBLK},MOUNTPOINT"
"""MOUNTPOINTS came with util-linux 2.37 (2021): RHEL 8, Debian 11 and Ubuntu 20.04 do not have it."""
FINDMNT = "TARGET,SOURCE,FSTYPE,UUID,SIZE,USED,OPTIONS"
FACTS: dict[str, Fact] = {
    "block_devices": Fact(("sh", "-c", LSBLK), parse_block_devices),
    "file_systems": Fact(
        # By type, so that the size of a file system whose server is dead is never asked for.
        ("findmnt", "-J", "-b", "-l", "-t", "no" + ",".join(sorted(REMOTE_OR_VIRTUAL)), "-o", FINDMNT),
        parse_file_systems,
    ),
    "logical_volumes": Fact(
        ("lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", "vg_name,lv_name,lv_size"),
        parse_logical_volumes,
        optional=True,
    ),
    "os_release": Fact(("cat", "/etc/os-release"), parse_os_release),
    "kernel": Fact(("uname", "-r"), _stripped),
    "architecture": Fact(("uname", "-m"), _stripped),
    "hostname": Fact(("uname", "-n"), _stripped),
    "machine_id": Fact(("cat", "/etc/machine-id"), _stripped, optional=True),
    "efi": Fact(("ls", "/sys/firmware/efi"), bool, optional=True),
    "packages": Fact(("dpkg-query", "-W", "-f", "${Package} ${Version}\\n"), parse_packages, optional=True),
    "packages_rpm": Fact(("rpm", "-qa", "--qf", "%{NAME} %{VERSION}-%{RELEASE}\\n"), parse_packages, optional=True),
}
"""The facts of a Linux client. lsblk and findmnt speak JSON since util-linux 2.27 (2015)."""


def assemble(collected: datetime, values: Mapping[str, Any]) -> Facts:
    """Facts from the parsed values of FACTS; optional ones that are missing are absent from `values`."""
    release = values["os_release"]
    return Facts(
        collected=collected,
        hostname=values["hostname"],
        os_id=release.get("ID", "unknown"),
        os_version=release.get("VERSION_ID", ""),
        os_name=release.get("PRETTY_NAME", "unknown"),
        kernel=values["kernel"],
        architecture=values["architecture"],
        boot_mode="uefi" if values.get("efi") else "bios",
        machine_id=values.get("machine_id", ""),
        block_devices=values["block_devices"],
        file_systems=values["file_systems"],
        logical_volumes=values.get("logical_volumes", ()),
        packages=values.get("packages") or values.get("packages_rpm") or (),
    )
