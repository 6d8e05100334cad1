"""Mount an image's file systems in libguestfs' appliance, each found by a client's facts; name what its disks hold."""

from collections.abc import Mapping, Sequence

from tasks.drivers.appliance_session import Handle
from tasks.errors import ImageUnfit, IntegrityError
from tasks.model.boot_names import parse_blkid
from tasks.model.image_update import COARSE, MountedBy, mount_options, nested_places


def devices(handle: Handle) -> list[dict[str, str]]:
    """All disks, partitions and volumes that blkid knows something of, in one call: each takes a second, emulated."""
    return parse_blkid(handle.debug("sh", ["blkid -c /dev/null -o export"]))


def find(
    handle: Handle, image: str, wanted: Sequence[MountedBy], rows: Sequence[Mapping[str, str]]
) -> dict[MountedBy, str]:
    """Which of the `devices` holds each file system of the facts, by libguestfs' name of it; ImageUnfit without one."""
    by_uuid = {system.uuid: _device(image, system, rows) for system in wanted}
    # What blkid calls /dev/sda is the kernel's name; libguestfs may call another disk so.
    names = {
        uuid: name if name.startswith("/dev/mapper/") else handle.findfs_uuid(uuid) for uuid, name in by_uuid.items()
    }
    return {system: names[system.uuid] for system in wanted}


def mount(handle: Handle, image: str, found: Mapping[MountedBy, str]) -> list[str]:
    """Mount each file system at its place; the places of subvolumes in them that nobody mounts.

    ImageUnfit when a mount point is no folder or a subvolume is missing, IntegrityError when one is damaged.
    """
    nested = list[str]()
    for system, device in sorted(found.items(), key=lambda one: one[0].mountpoint.rstrip("/").count("/")):
        place = system.mountpoint
        if place != "/":
            if not handle.exists(place):
                handle.mkdir_p(place)
            # A link would lead the mount to some other place, even out of the image.
            if handle.realpath(place) != place or not handle.is_dir(place):
                raise ImageUnfit(image, f"a folder {place} to mount {system.uuid} on", handle.realpath(place))
        try:
            handle.mount_options(mount_options(system), device, place)
        except RuntimeError as error:
            raise _unmountable(handle, image, system, device, str(error)) from error
        if system.fstype == "btrfs":
            nested += nested_places(system, tuple(found), _subvolumes(handle, device))
    return nested


def _device(image: str, system: MountedBy, rows: Sequence[Mapping[str, str]]) -> str:
    there = {row["UUID"].lower(): row for row in rows if "UUID" in row}
    row = there.get(system.uuid.lower(), {})
    if row.get("TYPE") != system.fstype:
        wanted = f"{system.mountpoint} ({system.fstype}) with UUID {system.uuid}"
        has = sorted(f"{uuid} ({one.get('TYPE', '')})" for uuid, one in there.items())
        raise ImageUnfit(image, wanted, ", ".join(has) or "no file system")
    return row["DEVNAME"]


def _unmountable(handle: Handle, image: str, system: MountedBy, device: str, said: str) -> IntegrityError:
    """Why it could not be mounted: of btrfs, a subvolume that is not there is no damage."""
    if system.fstype == "btrfs" and "No such file" in said:
        wanted = f"subvolume {system.subvolume} for {system.mountpoint} on {device}"
        return ImageUnfit(image, wanted, "no such subvolume there")
    words = " ".join(said.split())[-300:]
    return IntegrityError(image, f"{system.fstype} on {device} that mounts on {system.mountpoint}", words)


def _subvolumes(handle: Handle, device: str) -> list[str]:
    """All of a device's, by their paths from its top: of a mounted one, others are told by paths of their own."""
    return [str(row["btrfssubvolume_path"]) for row in handle.btrfs_subvolume_list(device)]


def is_coarse(system: MountedBy) -> bool:
    """Whether it keeps names, contents and rough times only."""
    return system.fstype in COARSE
