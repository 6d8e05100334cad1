"""What an update of an image mounts, and what of it is left as it is: rules from a client's facts and its night."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.model.facts import Facts
from tasks.model.facts_mounts import FileSystem, subvolume_of
from tasks.model.manifest import NightManifest
from tasks.model.rsync_pattern import exclude_rule, literal

BELONGS_TO_DISK = ("/boot/grub/i386-pc/", "/boot/grub2/i386-pc/")
"""GRUB's modules fit the core image in the boot sector of the very disk, which is not a file."""
COARSE = frozenset(("vfat", "msdos", "exfat"))
"""File systems without owners, modes, links and xattrs, whose times are of two seconds."""
# Deletions first: the night may need the room. Nanoseconds: a file rewritten within the second of the image is found.
TREE_OPTIONS = "-aHAXS --numeric-ids --whole-file --delete-before --modify-window=-1"
"""rsync's for all but the coarse file systems."""
# What vfat cannot keep is not compared; its times are even seconds, its folders' are left alone.
COARSE_OPTIONS = "-rtO --whole-file --delete-before --modify-window=1"
"""rsync's for the coarse ones."""
RELABEL = "/.autorelabel"
"""SELinux labels the whole system anew when it finds this at boot."""


@dataclass(frozen=True)
class MountedBy:
    """A file system of the client by its facts; of btrfs with the subvolume that is mounted there, `/` for the top."""

    mountpoint: str
    uuid: str
    fstype: str
    subvolume: str = ""


def mount_options(system: MountedBy) -> str:
    """How it is mounted for an update, for mount(8)."""
    if system.fstype == "btrfs":
        return f"noatime,subvol={system.subvolume or '/'}"
    # Owners and modes that vfat cannot keep are no errors.
    return "noatime,quiet,tz=UTC" if system.fstype == "vfat" else "noatime"


@dataclass(frozen=True)
class UpdatePlan:
    """The file systems to mount, and rsync's patterns of what is neither written nor deleted."""

    mounts: tuple[MountedBy, ...]
    keep: tuple[str, ...]
    warnings: tuple[str, ...]


def update_plan(facts: Facts, night: NightManifest) -> UpdatePlan:
    """What an update with a night mounts and keeps.

    Kept are what the night left out, each file system's lost+found, what belongs to the disk, and whatever shows
    somewhere what lies elsewhere: a bind mount, a second mount of the same file system or subvolume.
    """
    pulled, seen = set(night.paths), set[tuple[str, str]]()
    mounts, again, warnings = list[MountedBy](), list[str](), list[str]()
    for row in sorted(facts.file_systems, key=lambda row: (row.mountpoint.count("/"), len(row.mountpoint))):
        if row.mountpoint not in pulled:
            continue
        mount, folder = _mounted(row), subvolume_of(row)
        part = row.fstype != "btrfs" and folder != "/"
        if part:
            words = f"{row.mountpoint} is left as the image has it: only {folder} of its file system was mounted there"
            warnings.append(words)
        if part or (mount.uuid and (mount.uuid, mount.subvolume) in seen):
            again.append(row.mountpoint)
            continue
        seen.add((mount.uuid, mount.subvolume))
        mounts.append(mount)
    shown = [place for place in (*facts.bind_mounts, *again) if place not in {mount.mountpoint for mount in mounts}]
    keep = [
        *night.excluded,
        *(literal(mount.mountpoint, "/lost+found") for mount in mounts),
        *(literal(place, "/*") for place in dict.fromkeys(shown)),
        *BELONGS_TO_DISK,
    ]
    return UpdatePlan(tuple(mounts), tuple(keep), tuple(warnings))


def _mounted(row: FileSystem) -> MountedBy:
    subvolume = subvolume_of(row) if row.fstype == "btrfs" else ""
    return MountedBy(row.mountpoint, row.uuid or "", row.fstype, subvolume)


def tree_rules(mounts: Sequence[MountedBy], keep: Iterable[str], nested: Iterable[str]) -> list[str]:
    """rsync's rules for all but the coarse file systems: mount points and `nested` subvolumes are never deleted."""
    rules = [exclude_rule(pattern) for pattern in keep]
    places = [mount.mountpoint for mount in mounts]
    rules += [f"- {literal(mount.mountpoint)}" for mount in mounts if mount.fstype in COARSE]
    rules += [f"P {literal(place)}" for place in places if place != "/"]
    rules += [f"P {literal(place, '/lost+found')}" for place in places]
    rules += [rule for place in nested for rule in (f"P {literal(place)}", f"P {literal(place, '/**')}")]
    return [*rules, f"P {RELABEL}"]


def coarse_rules(mounts: Sequence[MountedBy], keep: Iterable[str]) -> list[str]:
    """rsync's rules for the coarse file systems alone; empty when there are none.

    One that the night does not have keeps what it holds.
    """
    places = [mount.mountpoint for mount in mounts if mount.fstype in COARSE]
    if not places:
        return []
    rules = [*(exclude_rule(pattern) for pattern in keep), *(f"P {literal(place)}" for place in places)]
    for place in places:
        parts = place.split("/")
        rules += [f"+ {literal('/'.join(parts[:depth]), '/')}" for depth in range(2, len(parts) + 1)]
        rules.append(f"+ {literal(place, '/**')}")
    return [*rules, "- *"]


def nested_places(mount: MountedBy, mounts: Sequence[MountedBy], subvolumes: Iterable[str]) -> list[str]:
    """Where subvolumes that nobody mounts show below a mount point: no backup holds what is in them.

    `subvolumes` are those of its file system, as `btrfs subvolume list` names them.
    """
    inside = mount.subvolume.strip("/")
    front = f"{inside}/" if inside else ""
    known = {other.mountpoint for other in mounts}
    paths = [path.removeprefix(front) for path in subvolumes if path != inside and path.startswith(front)]
    places = [f"{mount.mountpoint.rstrip('/')}/{path}" for path in paths]
    return [place for place in places if place not in known]


def place_of_path(path: str, places: Iterable[str]) -> str:
    """The mount point, out of `places`, that a path lies on; "/" when it is on no other."""
    above = [place for place in places if path == place or path.startswith(f"{place.rstrip('/')}/")]
    return max(above, key=len, default="/")
