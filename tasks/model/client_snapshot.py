"""Read-only snapshots of a client's file systems, made for the transfer of its files: which, where, and what is ours.

All of them are mounted as one tree, each at its own place in it, and what cannot be snapshotted is bound in as it is.
So the names of files, and what a pattern is anchored to, are the client's own.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from tasks.model.client_volumes import Group, Volume
from tasks.model.facts_mounts import REMOTE_OR_VIRTUAL
from tasks.model.manifest import SourceKind, SourceRecord
from tasks.model.mountinfo import Mount, mount_of
from tasks.model.rsync_pattern import literal

WantedSnapshot = Literal["none", "lvm", "btrfs", "auto"]

ROOT = "/run/gbs-snapshot"
"""Where on the client everything is mounted. Nobody else's is: what is mounted below it is ours."""
BTRFS_FOLDER = ".gbs-snapshots"
"""The folder for our snapshots at the top of a btrfs file system, which is seldom mounted anywhere."""
TAG = "gbs"
"""What our logical volumes are tagged with."""
_OURS = re.compile(r"gbs-\d{8}T\d{6}Z-\d+")
_SUBVOLUME = re.compile(rf"^ID \d+ .*\bpath (?:<FS_TREE>/)?{re.escape(BTRFS_FOLDER)}/({_OURS.pattern})$", re.M)

LVM_MOUNT_OPTIONS = {
    "ext2": "ro",
    # The journal needs no replay: LVM freezes the file system for the instant of the snapshot, and so empties it.
    "ext3": "ro,noload",
    "ext4": "ro,noload",
    # XFS mounts no second file system with the same UUID unless it is told to.
    "xfs": "ro,nouuid",
}
"""How a snapshot of each type of file system is mounted; another type is read live. btrfs makes its own snapshots: of a
copy with the same UUID on another device it would take either for the other."""


@dataclass(frozen=True)
class Survey:
    """What a client has mounted, its LVM, and which of the paths lead through a symbolic link."""

    mounts: tuple[Mount, ...]
    volumes: tuple[Volume, ...] = ()
    groups: tuple[Group, ...] = ()
    linked: frozenset[str] = frozenset()
    complaints: tuple[str, ...] = ()
    """What its LVM could not tell, a line each."""

    def mount_of(self, path: str) -> Mount:
        """The mount that a path lies in."""
        return mount_of(path, list(self.mounts))


@dataclass(frozen=True)
class Part:
    """One file system of those that are pulled, and how it is to be read."""

    mount: Mount
    kind: SourceKind = "live"
    name: str = ""
    """What its snapshot is called: a logical volume or subvolume of that name."""
    origin: str = ""
    """The logical volume that is snapshotted, as group/name."""
    extents: int = 0
    """The room of an LVM snapshot."""
    reason: str = ""
    """Why it is read live."""
    unexpected: bool = False
    """Whether it could be snapshotted at another time: a warning then."""

    @property
    def snapshot(self) -> str:
        """The LVM snapshot as group/name."""
        return f"{self.origin.partition('/')[0]}/{self.name}"


@dataclass(frozen=True)
class SnapshotTree:
    """What is read in place of the client's own tree."""

    id: str
    sources: tuple[SourceRecord, ...]
    reads: Mapping[str, str]
    """What rsync is asked for, by path: below the tree, whose own name is cut off at /./, or the path itself."""
    mounted: Mapping[str, str] = field(default_factory=dict)
    """The snapshots in the tree: where they are mounted → the client's own place."""
    volumes: Mapping[str, str] = field(default_factory=dict)
    """The LVM snapshots (group/name) → the client's own place."""
    left_out: tuple[str, ...] = ()
    """rsync patterns of what the client's own tree does not show."""
    warnings: tuple[str, ...] = ()


def tree_path(run_id: str, place: str = "/") -> str:
    """Where a place of the client is in the tree of a run."""
    return f"{ROOT}/{run_id}/tree{place if place != '/' else ''}"


def plan(
    survey: Survey, paths: Sequence[str], wanted: WantedSnapshot, room_percent: int, run_id: str
) -> tuple[Part, ...]:
    """How each file system that a path lies on is read, those above before those below."""
    mounted = [survey.mount_of(path) for path in paths if path not in survey.linked]
    mounts = {mount.mountpoint: mount for mount in mounted}
    volumes = {volume.device: volume for volume in survey.volumes if volume.device}
    groups = {group.name: group for group in survey.groups}
    taken: Counter[str] = Counter()
    parts: list[Part] = []
    for place in sorted(mounts):
        mount, name = mounts[place], f"gbs-{run_id}-{len(parts)}"
        volume = volumes.get(mount.device)
        if why := _why_live(mount, volume, wanted):
            parts.append(Part(mount, reason=why))
        elif volume is None:
            parts.append(Part(mount, "btrfs", name))
        else:
            # A group that LVM did not tell of has no room that we could count on.
            group = groups.get(volume.group, Group(volume.group, 4 << 20, 0))
            extents = -(-volume.size_bytes * room_percent // (100 * group.extent_bytes))
            left = group.free_extents - taken[group.name]
            if extents > left:
                room = f"{left} extents of {group.extent_bytes} bytes are free in {group.name}"
                parts.append(Part(mount, reason=f"{room}, and its snapshot needs {extents}", unexpected=True))
            else:
                taken[group.name] += extents
                parts.append(Part(mount, "lvm", name, volume.full_name, extents))
    return tuple(parts)


def _why_live(mount: Mount, volume: Volume | None, wanted: WantedSnapshot) -> str:
    """Why a file system cannot be read from a snapshot; empty when it can."""
    if _is_foreign(mount):
        return f"{mount.fstype} is no file system of its own disks"
    why = _why_not_btrfs(mount, wanted) if mount.fstype == "btrfs" else _why_not_lvm(mount, volume, wanted)
    return f"{mount.fstype} on {mount.source} {why}" if why else ""


def _is_foreign(mount: Mount) -> bool:
    return mount.fstype in REMOTE_OR_VIRTUAL or mount.fstype.startswith("fuse")


def _why_not_btrfs(mount: Mount, wanted: WantedSnapshot) -> str:
    if wanted not in ("btrfs", "auto"):
        return f"is read live: only {wanted} is asked for"
    if "ro" in mount.options:
        return "is read-only"
    return "" if f"subvol={mount.root}" in mount.options else "is mounted by a folder that is no subvolume"


def _why_not_lvm(mount: Mount, volume: Volume | None, wanted: WantedSnapshot) -> str:
    if volume is None:
        return "is not on LVM"
    if wanted not in ("lvm", "auto"):
        return f"is read live: only {wanted} is asked for"
    if mount.root != "/":
        return "is mounted by a folder"
    if mount.fstype not in LVM_MOUNT_OPTIONS:
        return "is of a type whose snapshots nobody has tried to mount"
    return "" if volume.is_plain else f"is a volume whose snapshot has no room of its own ({volume.full_name})"


def our_mounts(survey: Survey) -> list[str]:
    """What is mounted below our folder, the last first: so each can be unmounted."""
    return [mount.mountpoint for mount in reversed(survey.mounts) if mount.mountpoint.startswith(f"{ROOT}/")]


def our_volumes(survey: Survey) -> list[str]:
    """Our LVM snapshots as group/name: by name, tag and kind. A volume that lacks one of them is somebody else's."""
    return [
        volume.full_name
        for volume in survey.volumes
        if _OURS.fullmatch(volume.name) and TAG in volume.tags and volume.is_snapshot
    ]


def our_subvolumes(text: str) -> list[str]:
    """Ours in `btrfs subvolume list -a -r -s`, which lists read-only snapshots: by name, in our own folder."""
    return _SUBVOLUME.findall(text)


def btrfs_devices(survey: Survey) -> dict[str, str]:
    """Every btrfs file system that may be written: its device → a place where it is mounted."""
    places: dict[str, str] = {}
    for mount in survey.mounts:
        if mount.fstype == "btrfs" and "ro" not in mount.options and not mount.mountpoint.startswith(f"{ROOT}/"):
            places.setdefault(mount.source, mount.mountpoint)
    return places


def shadowed(survey: Survey, parts: Iterable[Part]) -> list[str]:
    """Mount points that are not in the tree: it shows the folders that they hide on the client, and all in those."""
    places = {part.mount.mountpoint for part in parts}
    others = [mount for mount in survey.mounts if not mount.mountpoint.startswith(f"{ROOT}/")]
    found = {mount.mountpoint for mount in others} - places - {"/"}
    return sorted(place for place in found if _above(place, others) in places)


def _above(place: str, mounts: list[Mount]) -> str:
    """The mount point that a mount point lies in."""
    return mount_of(place.rpartition("/")[0] or "/", mounts).mountpoint


def local_places(survey: Survey) -> list[str]:
    """Where file systems of the client's own disks are mounted."""
    return [
        mount.mountpoint
        for mount in survey.mounts
        if not _is_foreign(mount) and not mount.mountpoint.startswith(f"{ROOT}/")
    ]


def tree_of(
    survey: Survey,
    paths: Sequence[str],
    run_id: str,
    *,
    parts: Sequence[Part],
    inside: Sequence[Part],
    instants: Mapping[str, datetime],
    hidden: Sequence[str],
) -> SnapshotTree:
    """The tree of a run: `parts` as they were made, those of them that are `inside`, the instants by snapshot's name.

    `hidden` are mount points of the client whose folder holds something in the tree.
    """
    places = {part.mount.mountpoint for part in inside}
    own = [part.mount.mountpoint for part in inside if part.mount.fstype == "btrfs" and part.mount.root == "/"]
    snapshots = [part for part in inside if part.kind != "live"]
    linked = [
        SourceRecord(place=path, kind="live", reason="its path leads through a symbolic link, or is not there")
        for path in sorted(survey.linked)
    ]
    return SnapshotTree(
        id=run_id,
        sources=(
            *(
                SourceRecord(
                    place=part.mount.mountpoint, kind=part.kind, instant=instants.get(part.name), reason=part.reason
                )
                for part in parts
            ),
            *linked,
        ),
        reads={
            # At /./ rsync cuts off what is before it (rsync(1), --relative).
            path: f"{tree_path(run_id)}/./{path.lstrip('/')}"
            if path not in survey.linked and survey.mount_of(path).mountpoint in places
            else path
            for path in paths
        },
        mounted={tree_path(run_id, part.mount.mountpoint): part.mount.mountpoint for part in snapshots},
        volumes={part.snapshot: part.mount.mountpoint for part in snapshots if part.kind == "lvm"},
        left_out=(
            *(literal(place, "/*") for place in hidden),
            *(f"{place.rstrip('/')}/{BTRFS_FOLDER}" for place in own),
        ),
        warnings=(*survey.complaints, *_warnings(parts, linked)),
    )


def _warnings(parts: Sequence[Part], linked: Sequence[SourceRecord]) -> list[str]:
    lines = [f"{part.mount.mountpoint} was read live: {part.reason}" for part in parts if part.unexpected]
    lines += [f"{source.place} was read live: {source.reason}" for source in linked]
    if all(part.kind == "live" for part in parts) and not lines:
        reasons = "; ".join(f"{part.mount.mountpoint}: {part.reason}" for part in parts)
        return [f"no file system could be read from a snapshot: {reasons}"]
    return lines


def lost(tree: SnapshotTree, survey: Survey, room_percent: int) -> list[str]:
    """Which snapshots are no longer what they were when they were made, a line each; none when all of them are."""
    there = {mount.mountpoint for mount in survey.mounts}
    volumes = {volume.full_name: volume for volume in survey.volumes}
    full = [place for name, place in tree.volumes.items() if name in volumes and volumes[name].is_lost]
    gone = [place for name, place in tree.volumes.items() if name not in volumes]
    # LVM's own monitor (dmeventd) unmounts what has filled up: it is seen as an empty folder then.
    gone += [place for path, place in tree.mounted.items() if path not in there and place not in full]
    room = f"give it more room (snapshot_room_percent, now {room_percent})"
    return [
        *(f"the snapshot of {place} filled up during the transfer: {room}" for place in full),
        *(f"the snapshot of {place} went away during the transfer" for place in dict.fromkeys(gone)),
    ]
