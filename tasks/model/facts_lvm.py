"""Facts: LVM's volume groups, physical and logical volumes (lvm2)."""

import json
from collections.abc import Mapping
from typing import Any

from tasks.model.fact import FactRow


class LogicalVolume(FactRow):
    """An LVM logical volume."""

    vg: str
    lv: str
    size_bytes: int


class PhysicalVolume(FactRow):
    """A physical volume; `start_bytes` is where its first extent begins."""

    device: str
    uuid: str
    size_bytes: int
    start_bytes: int = 0


class LvSegment(FactRow):
    """A segment of a logical volume, by lvmreport(7)'s words; `ranges` are the extents it lies on (`/dev/sda3:0-99`).

    `pool` is set for a thin volume, `origin` for a snapshot. A volume that was extended may have several segments.
    """

    lv: str
    type: str
    size_bytes: int
    stripes: int = 1
    stripe_bytes: int = 0
    chunk_bytes: int = 0
    pool: str = ""
    origin: str = ""
    ranges: tuple[str, ...] = ()


class VolumeGroup(FactRow):
    """A volume group and what it is made of. One without a name holds the physical volumes that are in none."""

    name: str
    uuid: str = ""
    extent_bytes: int = 0
    size_bytes: int = 0
    physical_volumes: tuple[PhysicalVolume, ...] = ()
    segments: tuple[LvSegment, ...] = ()


def parse_logical_volumes(text: str) -> tuple[LogicalVolume, ...]:
    """Rows of LVS."""
    report = json.loads(text)["report"][0]["lv"] if text.strip() else []
    rows = (LogicalVolume(vg=row["vg_name"], lv=row["lv_name"], size_bytes=int(row["lv_size"])) for row in report)
    return tuple(sorted(rows, key=lambda row: (row.vg, row.lv)))


def parse_volume_groups(text: str) -> tuple[VolumeGroup, ...]:
    """The report of LVM: a part for each volume group, by name."""
    parts = json.loads(text)["report"] if text.strip() else []
    groups = [_group(part) for part in parts if part.get("vg") or part.get("pv")]
    return tuple(sorted(groups, key=lambda group: group.name))


def _group(part: Mapping[str, Any]) -> VolumeGroup:
    row = part["vg"][0] if part.get("vg") else {}
    return VolumeGroup(
        name=row.get("vg_name", ""),
        uuid=row.get("vg_uuid", ""),
        extent_bytes=_number(row.get("vg_extent_size")),
        size_bytes=_number(row.get("vg_size")),
        physical_volumes=tuple(
            PhysicalVolume(
                device=pv["pv_name"],
                uuid=pv["pv_uuid"],
                size_bytes=_number(pv["pv_size"]),
                start_bytes=_number(pv["pe_start"]),
            )
            for pv in part.get("pv", ())
        ),
        segments=tuple(_segment(segment) for segment in part.get("seg", ())),
    )


def _segment(row: Mapping[str, Any]) -> LvSegment:
    return LvSegment(
        lv=row["lv_name"],
        type=row["segtype"],
        size_bytes=_number(row["seg_size"]),
        stripes=_number(row["stripes"]),
        stripe_bytes=_number(row["stripe_size"]),
        chunk_bytes=_number(row["chunk_size"]),
        pool=row["pool_lv"],
        origin=row["origin"],
        ranges=tuple(row["seg_pe_ranges"].split()),
    )


def _number(text: str | None) -> int:
    """A number of LVM's; what a row does not have is empty."""
    return int(text or 0)


_REPORT = ("--reportformat", "json", "--units", "b", "--nosuffix")
LVS = ("lvs", *_REPORT, "-o", "vg_name,lv_name,lv_size")
_SEGMENT = "lv_name,segtype,seg_size,stripes,stripe_size,chunk_size,pool_lv,origin,seg_pe_ranges"
LVM = (
    *("lvm", "fullreport", *_REPORT),
    *("--configreport", "vg", "-o", "vg_name,vg_uuid,vg_extent_size,vg_size"),
    *("--configreport", "pv", "-o", "pv_name,pv_uuid,pv_size,pe_start"),
    *("--configreport", "lv", "-o", "lv_name"),
    *("--configreport", "pvseg", "-o", "pvseg_start"),
    *("--configreport", "seg", "-o", _SEGMENT),
)
"""One look at all devices for groups, volumes and segments; JSON came with LVM 2.02.158 (2016)."""
