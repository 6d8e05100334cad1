"""Mount an image's file systems in libguestfs' appliance, each found by a client's facts; name what its disks hold."""

from collections.abc import Sequence

from tasks.drivers.appliance_session import Handle
from tasks.errors import ImageUnfit, IntegrityError
from tasks.model.boot_names import known_names
from tasks.model.image_update import COARSE, MountedBy, nested_places

_COARSE_OPTIONS = "noatime,quiet,tz=UTC"
"""Owners and modes that vfat cannot keep are no errors."""


def mount(handle: Handle, image: str, wanted: Sequence[MountedBy]) -> list[str]:
    """Mount each file system of the facts at its place; the places of subvolumes below that nobody mounts.

    All are found before the first is mounted. ImageUnfit when one is missing, IntegrityError when one is damaged.
    """
    found = [(system, _find(handle, image, system)) for system in wanted]
    nested = list[str]()
    for system, device in sorted(found, key=lambda one: one[0].mountpoint.rstrip("/").count("/")):
        place = system.mountpoint
        if place != "/":
            if not handle.exists(place):
                handle.mkdir_p(place)
            # A link would lead the mount to some other place, even out of the image.
            if handle.realpath(place) != place or not handle.is_dir(place):
                raise ImageUnfit(image, f"a folder {place} to mount {system.uuid} on", handle.realpath(place))
        try:
            handle.mount_options(_options(system), device, place)
        except RuntimeError as error:
            raise _unmountable(handle, image, system, device, str(error)) from error
        if system.fstype == "btrfs":
            nested += nested_places(system, wanted, _subvolumes(handle, place))
    return nested


def _options(system: MountedBy) -> str:
    if system.fstype == "btrfs":
        return f"noatime,subvol={system.subvolume or '/'}"
    return _COARSE_OPTIONS if system.fstype == "vfat" else "noatime"


def _find(handle: Handle, image: str, system: MountedBy) -> str:
    """The device that holds a file system of the facts."""
    place = system.mountpoint
    try:
        device: str = handle.findfs_uuid(system.uuid)
    except RuntimeError as error:
        there = {f"{row['UUID']} ({row.get('TYPE', '')})" for row in tagged(handle) if row.get("UUID")}
        wanted = f"{place} ({system.fstype}) with UUID {system.uuid}"
        raise ImageUnfit(image, wanted, ", ".join(sorted(there)) or "no file system") from error
    kind = handle.vfs_type(device)
    if kind != system.fstype:
        raise ImageUnfit(image, f"{system.fstype} with UUID {system.uuid} ({place})", kind)
    return device


def _unmountable(handle: Handle, image: str, system: MountedBy, device: str, said: str) -> IntegrityError:
    """Why it could not be mounted: of btrfs, a subvolume that is not there is no damage."""
    if system.fstype == "btrfs" and "No such file" in said:
        wanted = f"subvolume {system.subvolume} for {system.mountpoint} on {device}"
        return ImageUnfit(image, wanted, "no such subvolume there")
    words = " ".join(said.split())[-300:]
    return IntegrityError(image, f"{system.fstype} on {device} that mounts on {system.mountpoint}", words)


def _subvolumes(handle: Handle, place: str) -> list[str]:
    return [str(row["btrfssubvolume_path"]) for row in handle.btrfs_subvolume_list(place)]


def tagged(handle: Handle) -> list[dict[str, str]]:
    """What blkid says of every disk, partition, logical volume and array that it knows something of."""
    rows = list[dict[str, str]]()
    devices = (*handle.list_devices(), *handle.list_partitions(), *handle.lvs(), *handle.list_md_devices())
    for device in devices:
        try:
            rows.append(handle.blkid(device))
        except RuntimeError:
            continue  # it is empty
    return rows


def names(handle: Handle) -> set[str]:
    """All that fstab, crypttab and GRUB may call something on the image's disks."""
    return known_names(tagged(handle), handle.lvs())


def is_coarse(system: MountedBy) -> bool:
    """Whether it keeps names, contents and rough times only."""
    return system.fstype in COARSE
