"""A client's LVM, as its own tools tell it: logical volumes and the groups that they take their room from."""

import json
from dataclasses import dataclass
from typing import Any

LVS = "vg_name,lv_name,lv_attr,lv_tags,origin,lv_size,data_percent,lv_kernel_major,lv_kernel_minor"
VGS = "vg_name,vg_extent_size,vg_free_count"


@dataclass(frozen=True)
class Volume:
    """A logical volume; `attributes` are lvs(8)'s ten letters, `device` is its `major:minor` (empty when inactive)."""

    group: str
    name: str
    attributes: str
    tags: tuple[str, ...]
    origin: str
    size_bytes: int
    used_percent: float | None
    """How much of a snapshot's room is taken; None of what is no snapshot."""
    device: str

    @property
    def full_name(self) -> str:
        """Its name as LVM's commands take it."""
        return f"{self.group}/{self.name}"

    @property
    def is_plain(self) -> bool:
        """Whether a snapshot of it has room of its own: it is linear, striped, mirrored, RAID or cached, not thin."""
        return self.attributes[0] in "-oOmMrRC"

    @property
    def is_snapshot(self) -> bool:
        """Whether it is a snapshot with room of its own; one that has filled up is one, too."""
        return self.attributes[0] in "sS" and bool(self.origin)

    @property
    def is_lost(self) -> bool:
        """Whether it is a snapshot that has filled up: what is read of it is not what was there."""
        return self.attributes[4] in "IS" or (self.used_percent is not None and self.used_percent >= 100)


@dataclass(frozen=True)
class Group:
    """A volume group and its free room."""

    name: str
    extent_bytes: int
    free_extents: int


def parse_volumes(text: str) -> tuple[Volume, ...]:
    """Rows of `lvs --reportformat json --units b --nosuffix -o` LVS."""
    return tuple(
        Volume(
            group=row["vg_name"],
            name=row["lv_name"],
            attributes=row["lv_attr"],
            tags=tuple(tag for tag in row["lv_tags"].split(",") if tag),
            origin=row["origin"],
            size_bytes=int(row["lv_size"]),
            used_percent=float(row["data_percent"]) if row["data_percent"] else None,
            device="" if row["lv_kernel_major"] == "-1" else f"{row['lv_kernel_major']}:{row['lv_kernel_minor']}",
        )
        for row in _rows(text, "lv")
    )


def parse_groups(text: str) -> tuple[Group, ...]:
    """Rows of `vgs --reportformat json --units b --nosuffix -o` VGS."""
    return tuple(
        Group(row["vg_name"], int(row["vg_extent_size"]), int(row["vg_free_count"])) for row in _rows(text, "vg")
    )


def _rows(text: str, kind: str) -> list[dict[str, Any]]:
    if not text.strip():
        return []
    rows: list[dict[str, Any]] = json.loads(text)["report"][0][kind]
    return rows
