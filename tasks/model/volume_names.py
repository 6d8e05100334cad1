"""LVM's names: as the device mapper writes them, and which of a template's stand for which of a client's."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict

from tasks.model.shape import Disk, Shape, Volume, mapped_name
from tasks.model.shape import shape as ordered_shape

_MAPPED = re.compile(r"(?!-)((?:[A-Za-z0-9+_.]|--)+)-((?:[A-Za-z0-9+_.]|--)+)")
"""Only what lvm(8) lets a name consist of: these come from clients, and reach tools."""


class Renamed(BaseModel):
    """A volume group or logical volume of a template, and what the client calls it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str
    volume: str
    new_group: str
    new_volume: str


Names = tuple[Renamed, ...]
"""Every logical volume of a template, renamed or not."""


def parts_of(name: str) -> tuple[str, str] | None:
    """Volume group and logical volume of a device mapper's name (`vg--0-root`: vg-0, root); None when it is no such."""
    found = _MAPPED.fullmatch(name)
    return (found[1].replace("--", "-"), found[2].replace("--", "-")) if found else None


def path_of(group: str, volume: str) -> str:
    """What LVM calls the device of a logical volume."""
    return f"/dev/{group}/{volume}"


def paired_names(template: Shape, client: Shape) -> Names:
    """The template's logical volumes with the names of those of the client that hold the same.

    A group stands for one with as many volumes that hold the same for the same mount points, of its own name before
    others; in it a volume for the one of its own name before others, the smaller for the smaller. What has no
    counterpart keeps its name, and `compare` shows it then.
    """
    ours, theirs = _groups(template), _groups(client)
    pairs = {group: group for group in ours if _content(ours[group]) == _content(theirs.get(group, ()))}
    for group in ours:
        free = [other for other in theirs if other not in pairs.values()]
        alike = [other for other in free if _content(ours[group]) == _content(theirs[other])]
        if group not in pairs and alike:
            pairs[group] = alike[0]
    return tuple(
        renamed
        for group, volumes in ours.items()
        for renamed in _volumes(group, pairs.get(group, group), volumes, theirs.get(pairs.get(group, group), ()))
    )


def _groups(shape: Shape) -> dict[str, list[Volume]]:
    groups = defaultdict[str, list[Volume]](list)
    for volume in shape.volumes:
        names = parts_of(volume.name)
        if volume.kind == "lvm" and names is not None:
            groups[names[0]].append(volume)
    return groups


def _content(volumes: Sequence[Volume]) -> list[tuple[str, tuple[str, ...]]]:
    return sorted((volume.holds, volume.mountpoints) for volume in volumes)


def _volumes(group: str, new: str, volumes: Sequence[Volume], others: Sequence[Volume]) -> Iterator[Renamed]:
    free = {_own_name(other): other for other in others}
    same = {_own_name(one) for one in volumes if _alike(one, free.get(_own_name(one)))}
    taken = set(same)
    for one in sorted(volumes, key=lambda volume: volume.size_bytes):
        name = _own_name(one)
        alike = [other for other in free if other not in taken and _alike(one, free[other])]
        chosen = name if name in same or not alike else min(alike, key=lambda other: free[other].size_bytes)
        taken.add(chosen)
        yield Renamed(group=group, volume=name, new_group=new, new_volume=chosen)


def _alike(one: Volume, other: Volume | None) -> bool:
    return other is not None and (one.holds, one.mountpoints) == (other.holds, other.mountpoints)


def _own_name(volume: Volume) -> str:
    names = parts_of(volume.name)
    return names[1] if names else volume.name


def as_named(template: Shape, names: Names, client: Shape) -> Shape:
    """The template's shape with the client's names, and with the client's sizes where its own are larger.

    A larger disk or volume holds what a smaller one did; a smaller one shows as different.
    """
    new = {mapped_name(row.group, row.volume): mapped_name(row.new_group, row.new_volume) for row in names}
    wanted = {volume.name: volume.size_bytes for volume in client.volumes if volume.name}
    volumes = [
        volume.model_copy(
            update={
                "name": (name := new.get(volume.name, volume.name)),
                "size_bytes": min(volume.size_bytes, wanted.get(name, volume.size_bytes)),
            }
        )
        for volume in template.volumes
    ]
    disks = [_as_large(*pair) for pair in zip(template.disks, client.disks, strict=False)]
    disks += template.disks[len(disks) :]
    return ordered_shape(template.boot_mode, template.architecture, tuple(disks), tuple(volumes))


def _as_large(disk: Disk, client: Disk) -> Disk:
    partitions = [
        one.model_copy(
            update={
                "size_bytes": min(one.size_bytes, other.size_bytes),
                # libguestfs does not tell of what fstab names by PARTUUID.
                "mountpoints": one.mountpoints or other.mountpoints,
            }
        )
        for one, other in zip(disk.partitions, client.partitions, strict=False)
    ]
    partitions += disk.partitions[len(partitions) :]
    size_bytes = min(disk.size_bytes, client.size_bytes)
    return disk.model_copy(update={"size_bytes": size_bytes, "partitions": tuple(partitions)})
