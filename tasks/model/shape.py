"""The shape of a system's disks: what two systems must share for one image to serve both, and where they differ.

It is made from a client's facts and, alike, from what libguestfs finds in an image. Nothing that differs between
equals is in it: no UUIDs, no labels, no kernel names of disks.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from pydantic import BaseModel, ConfigDict

from tasks.model.facts import Facts
from tasks.model.facts_boot import BootMode
from tasks.model.facts_disks import BlockDevice
from tasks.model.names import human_bytes

NOTHING = "nothing"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Partition(_Frozen):
    """A partition: its type (a GUID, or a number such as 0x83), what it holds (ext4, swap, LVM2_member, crypto_LUKS
    ...) and where that is mounted.
    """

    size_bytes: int
    type: str
    holds: str
    mountpoints: tuple[str, ...]

    @property
    def words(self) -> str:
        """What operators read for it."""
        return _words(self.size_bytes, f"type {self.type}", self.holds, self.mountpoints)


class Volume(_Frozen):
    """A logical volume (`kind` lvm) or an array (raid1 ...); only logical volumes have lasting names."""

    kind: str
    name: str
    size_bytes: int
    holds: str
    mountpoints: tuple[str, ...]

    @property
    def words(self) -> str:
        """What operators read for it."""
        return _words(self.size_bytes, f"{self.kind} {self.name}".strip(), self.holds, self.mountpoints)


class Disk(_Frozen):
    """A disk, its partition table (gpt, dos or none) and its partitions in order."""

    size_bytes: int
    table: str
    holds: str
    mountpoints: tuple[str, ...]
    partitions: tuple[Partition, ...]

    @property
    def words(self) -> str:
        """What operators read for it."""
        return _words(self.size_bytes, self.table, self.holds, self.mountpoints)


class Shape(_Frozen):
    """The disks of a system in order, what lies over them, and how it boots."""

    boot_mode: BootMode
    architecture: str
    disks: tuple[Disk, ...]
    volumes: tuple[Volume, ...] = ()

    @property
    def flavour(self) -> str:
        """The id that equal shapes share: 12 hex digits of a sha256."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Point:
    """One point of a comparison, in words."""

    what: str
    template: str
    client: str

    @property
    def same(self) -> bool:
        """Whether both agree on it."""
        return self.template == self.client


def shape_of_facts(facts: Facts) -> Shape:
    """The shape of a client. Bind mounts and switched-on swap come and go: only file systems' mount points count."""
    lasting = {row.mountpoint for row in facts.file_systems}
    visible = {mapped_name(row.vg, row.lv) for row in facts.logical_volumes}

    def hidden(device: BlockDevice) -> bool:
        """A thin pool's own parts are volumes to lsblk, and to no one else."""
        return bool(visible) and device.type == "lvm" and device.name not in visible

    def points(device: BlockDevice) -> tuple[str, ...]:
        return tuple(point for point in device.mountpoints if point in lasting)

    def partition(device: BlockDevice) -> Partition:
        kind = (device.partition_type or "").lower()
        return Partition(size_bytes=device.size_bytes, type=kind, holds=device.fstype or "", mountpoints=points(device))

    disks = [
        Disk(
            size_bytes=disk.size_bytes,
            table=disk.partition_table or "",
            holds="" if disk.partition_table else disk.fstype or "",
            mountpoints=points(disk),
            partitions=tuple(
                partition(device)
                for device in facts.block_devices
                if device.parent == disk.name and device.type == "part"
            ),
        )
        for disk in facts.block_devices
        if disk.parent is None
    ]
    volumes = {
        device.name: Volume(
            kind=device.type,
            name=device.name if device.type == "lvm" else "",
            size_bytes=device.size_bytes,
            holds=device.fstype or "",
            mountpoints=points(device),
        )
        for device in facts.block_devices
        if device.parent is not None and device.type != "part" and not hidden(device)
    }
    return shape(facts.boot_mode, facts.architecture, tuple(disks), tuple(volumes.values()))


def shape(boot_mode: BootMode, architecture: str, disks: tuple[Disk, ...], volumes: tuple[Volume, ...]) -> Shape:
    """A shape whose volumes stand in an order of their own, whatever order a tool listed them in."""
    ordered = sorted(volumes, key=lambda volume: (volume.kind, volume.name, volume.size_bytes, volume.holds))
    return Shape(boot_mode=boot_mode, architecture=architecture, disks=disks, volumes=tuple(ordered))


def compare(template: Shape, client: Shape) -> list[Point]:
    """Point by point what template and client are like; they match when every point is the same."""
    points = [
        Point("boot mode", template.boot_mode, client.boot_mode),
        Point("architecture", template.architecture, client.architecture),
    ]
    for number, (one, other) in enumerate(zip_longest(template.disks, client.disks), start=1):
        points.append(Point(f"disk {number}", one.words if one else NOTHING, other.words if other else NOTHING))
        pairs = zip_longest(one.partitions if one else (), other.partitions if other else ())
        for part, (first, second) in enumerate(pairs, start=1):
            what = f"disk {number}, partition {part}"
            points.append(Point(what, first.words if first else NOTHING, second.words if second else NOTHING))
    points += _volumes(template, client)
    return points


def _volumes(template: Shape, client: Shape) -> Iterator[Point]:
    """Logical volumes by their names, all else in order."""
    names = dict.fromkeys(volume.name for volume in (*template.volumes, *client.volumes))
    for name in names:
        ones = [volume for volume in template.volumes if volume.name == name]
        others = [volume for volume in client.volumes if volume.name == name]
        for one, other in zip_longest(ones, others):
            kind = one.kind if one else other.kind if other else ""
            what = f"{kind} {name}".strip()
            yield Point(what, one.words if one else NOTHING, other.words if other else NOTHING)


def _words(size_bytes: int, kind: str, holds: str, mountpoints: tuple[str, ...]) -> str:
    on = f" on {', '.join(mountpoints)}" if mountpoints else ""
    return f"{human_bytes(size_bytes)} ({size_bytes} bytes), {kind or 'no partition table'}, {holds or 'empty'}{on}"


def mapped_name(vg: str, lv: str) -> str:
    """The device mapper's name of a logical volume: dashes inside a part are doubled."""
    return f"{vg.replace('-', '--')}-{lv.replace('-', '--')}"
