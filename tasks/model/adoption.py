"""How a copy of a template becomes a client's disks: what of the client's identity is set on it, and where.

A client's files come with its night. What no file carries is on the disks: UUIDs and labels of file systems and swap,
the ids of partition tables and partitions, the names of LVM's groups and volumes. They are set by their place in the
shape that both have. LVM's own UUIDs of groups and volumes stay the template's: GRUB's core image may name them, and
no file does.
"""

import re
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from tasks.errors import RecoveryRefused
from tasks.model.facts import Facts
from tasks.model.facts_disks import BlockDevice
from tasks.model.shape import Shape, compare, shape_of_facts
from tasks.model.volume_names import Names, as_named, paired_names, parts_of, path_of

SETTABLE = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "swap", "vfat"))
"""What UUID and label can be set of."""
_ID = re.compile(r"(0x)?[0-9A-Za-z-]{1,64}")
_LABEL = re.compile(r"[^-\0][^\0]*")
_ENCRYPTED, _ARRAY = "crypto_LUKS", "linux_raid_member"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Place(_Frozen):
    """Where something lies: a disk (from 1) or one of its partitions (from 1, in order), or a volume by its path."""

    disk: int = 0
    partition: int = 0
    volume: str = ""


class Table(_Frozen):
    """A disk's partition table (gpt or dos) and its id."""

    disk: int
    kind: str
    id: str


class PartitionId(_Frozen):
    """A GPT partition's GUID and name."""

    place: Place
    guid: str
    name: str


class Holding(_Frozen):
    """A file system or swap with its UUID and label; the label may be empty."""

    place: Place
    fstype: str
    uuid: str
    label: str


class Adoption(_Frozen):
    """All that is set on a copy of a template."""

    tables: tuple[Table, ...]
    partitions: tuple[PartitionId, ...]
    physical_volumes: tuple[Holding, ...]
    names: Names
    holdings: tuple[Holding, ...]


def adoption(facts: Facts, template: Shape, *, client: str, called: str) -> Adoption:
    """What to set on a copy of the template `called`, so that its disks are the client's.

    The template has the client's shape: the same disks, partitions, volumes and file systems in the same order,
    nothing smaller than the client's; LVM's names may differ. RecoveryRefused, naming what differs, when it has not;
    and for what no template can give: encrypted disks, arrays.
    """
    _require_possible(facts, client)
    shape = shape_of_facts(facts)
    names = paired_names(template, shape)
    differing = [point for point in compare(as_named(template, names, shape), shape) if not point.same]
    if differing:
        first = differing[0]
        more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        reason = f"template {called} differs in {first.what}: it has {first.template}, the client {first.client}{more}"
        fix = f"take another; see: gbs image template match {client}"
        raise RecoveryRefused(f"client {client}", reason, fix)
    found = tuple(_holdings(facts))
    return Adoption(
        tables=tuple(_tables(facts)),
        partitions=tuple(_partitions(facts)),
        physical_volumes=tuple(row for row in found if row.fstype == "LVM2_member"),
        names=names,
        holdings=tuple(row for row in found if row.fstype in SETTABLE),
    )


def _require_possible(facts: Facts, client: str) -> None:
    what = f"client {client}"
    for kind, reason in ((_ENCRYPTED, "is encrypted by LUKS"), (_ARRAY, "is part of an md array")):
        if found := [device.name for device in facts.block_devices if device.fstype == kind]:
            fix = "recover it from an image of its own, or by hand: make the disks, then gbs recover files"
            raise RecoveryRefused(what, f"{found[0]} {reason}, and a template cannot become that", fix)
    for device in facts.block_devices:
        strange = device.fstype and device.fstype not in SETTABLE
        if strange and {row.mountpoint for row in facts.file_systems} & set(device.mountpoints):
            reason = f"the UUID of {device.fstype} on {device.name} ({device.mountpoints[0]}) cannot be set"
            raise RecoveryRefused(what, reason, "recover it from an image of its own")


def _disks(facts: Facts) -> list[BlockDevice]:
    return [device for device in facts.block_devices if device.parent is None]


def _placed_partitions(facts: Facts) -> Iterator[tuple[BlockDevice, Place, BlockDevice]]:
    """Each partition with its place and its disk."""
    for number, disk in enumerate(_disks(facts), start=1):
        mine = [row for row in facts.block_devices if row.parent == disk.name and row.type == "part"]
        for order, partition in enumerate(mine, start=1):
            yield partition, Place(disk=number, partition=order), disk


def _tables(facts: Facts) -> Iterator[Table]:
    for number, disk in enumerate(_disks(facts), start=1):
        if disk.partition_table in ("gpt", "dos") and _ID.fullmatch(disk.table_uuid or ""):
            yield Table(disk=number, kind=disk.partition_table, id=disk.table_uuid or "")


def _partitions(facts: Facts) -> Iterator[PartitionId]:
    """Of a GPT: a partition's id in a dos table is the table's, with its number."""
    for partition, place, disk in _placed_partitions(facts):
        guid = partition.partition_uuid or ""
        if disk.partition_table == "gpt" and _ID.fullmatch(guid):
            yield PartitionId(place=place, guid=guid, name=_label(partition.partition_label))


def _holdings(facts: Facts) -> Iterator[Holding]:
    """What the devices hold; a btrfs on several devices once, for they share its UUID.

    A UUID that is none is left out: the update then misses it, and says so.
    """
    placed = [(disk, Place(disk=number)) for number, disk in enumerate(_disks(facts), start=1)]
    placed += [(partition, place) for partition, place, _ in _placed_partitions(facts)]
    for device in facts.block_devices:
        names = parts_of(device.name) if device.type == "lvm" else None
        if names is not None:
            placed.append((device, Place(volume=path_of(*names))))
    seen = set[tuple[str, str] | Place]()
    for device, place in placed:
        key = (device.fstype, device.uuid or "") if device.fstype == "btrfs" else place
        if device.fstype and device.uuid and _ID.fullmatch(device.uuid) and key not in seen:
            seen.add(key)
            yield Holding(place=place, fstype=device.fstype, uuid=device.uuid, label=_label(device.label))


def _label(label: str | None) -> str:
    """A label, but none that a tool would take for an option."""
    return label if label and _LABEL.fullmatch(label) else ""
