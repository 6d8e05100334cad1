"""Facts: block devices and partitions (lsblk, sysfs)."""

import json
import re
from collections.abc import Mapping
from typing import Any

from tasks.model.fact import FactRow

SYSFS_SECTOR_BYTES = 512
"""The unit of sysfs, whatever the disk's own sectors are (Documentation/ABI/stable/sysfs-block of Linux)."""
_START = re.compile(r"^/sys/class/block/([^/\n]+)/start:(\d+)$", re.MULTILINE)


class BlockDevice(FactRow):
    """A row of lsblk: sizes in bytes, `parent` by kernel name.

    `partition_flags` are the table's own (dos 0x80: active; GPT attributes), `fs_version` is the one of what it holds
    (LUKS 1 or 2, FAT32, LVM2 001), `sector_bytes` the logical sector, by which a GPT counts.
    """

    name: str
    type: str
    size_bytes: int
    parent: str | None = None
    fstype: str | None = None
    fs_version: str | None = None
    uuid: str | None = None
    label: str | None = None
    partition_type: str | None = None
    partition_table: str | None = None
    table_uuid: str | None = None
    partition_uuid: str | None = None
    partition_label: str | None = None
    partition_flags: str | None = None
    start_bytes: int | None = None
    sector_bytes: int | None = None
    mountpoints: tuple[str, ...] = ()


def parse_block_devices(text: str) -> tuple[BlockDevice, ...]:
    """Rows of `lsblk -J -b` with the columns of LSBLK; loop and RAM devices and optical drives are left out.

    A device with several parents (md, multipath) has a row below each.
    """
    found: list[BlockDevice] = []

    def walk(row: Mapping[str, Any], parent: str | None) -> None:
        memory = row["type"] == "disk" and row["name"].startswith(("ram", "zram", "nbd"))
        if row["type"] in ("loop", "rom") or memory:
            return
        found.append(_device(row, parent))
        for child in row.get("children", ()):
            walk(child, row["name"])

    for row in json.loads(text)["blockdevices"]:
        walk(row, None)
    return tuple(found)


def _device(row: Mapping[str, Any], parent: str | None) -> BlockDevice:
    points = row.get("mountpoints") or [row.get("mountpoint")]
    return BlockDevice(
        name=row["name"],
        type=row["type"],
        size_bytes=int(row["size"]),
        parent=parent,
        fstype=row.get("fstype"),
        fs_version=row.get("fsver"),
        uuid=row.get("uuid"),
        label=row.get("label"),
        partition_type=row.get("parttype"),
        partition_table=row.get("pttype"),
        table_uuid=row.get("ptuuid"),
        partition_uuid=row.get("partuuid"),
        partition_label=row.get("partlabel"),
        partition_flags=row.get("partflags"),
        sector_bytes=int(row["log-sec"]) if row.get("log-sec") else None,
        mountpoints=tuple(sorted(point for point in points if point)),
    )


def parse_partition_starts(text: str) -> dict[str, int]:
    """The first byte of each partition by its kernel name, from what `grep -H .` says of sysfs."""
    # A / in a device's name (cciss/c0d0p1) is a ! in sysfs.
    return {name.replace("!", "/"): int(start) * SYSFS_SECTOR_BYTES for name, start in _START.findall(text)}


def with_starts(devices: tuple[BlockDevice, ...], starts: Mapping[str, int]) -> tuple[BlockDevice, ...]:
    """The devices, partitions with where they begin."""
    return tuple(
        device.model_copy(update={"start_bytes": starts[device.name]}) if device.name in starts else device
        for device in devices
    )


_LSBLK = "lsblk -J -b -o NAME,TYPE,SIZE,LOG-SEC,FSTYPE,UUID,LABEL,PARTTYPE,PARTUUID,PARTLABEL,PARTFLAGS"
LSBLK = f"{_LSBLK},FSVER,PTTYPE,PTUUID,MOUNTPOINTS 2> /dev/null || {_LSBLK},MOUNTPOINT"
"""MOUNTPOINTS came with util-linux 2.37 (2021): RHEL 8, Debian 11 and Ubuntu 20.04 do not have it."""
PARTITION_STARTS = "grep -H . /sys/class/block/*/start"
"""lsblk's START came with util-linux 2.38 (2022); sysfs always had it."""
