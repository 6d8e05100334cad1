"""The layout of an image's disks, as libguestfs finds it."""

from typing import Any

from tasks.drivers.appliance_session import Handle, Reporter, launched
from tasks.model.shape import mapped_name


def read_shape(request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """What `tasks.model.shape` wants to know of an image's disks; nothing is mounted but to read /etc/fstab."""
    with launched(request, [], readonly=True) as handle:
        reporter.now("reading the layout")
        roots = handle.inspect_os()
        architecture = handle.inspect_get_arch(roots[0]) if roots else ""
        places: dict[str, list[str]] = {}
        for place, device in (handle.inspect_get_mountpoints(roots[0]) if roots else {}).items():
            # Of a btrfs subvolume, what it lies on.
            places.setdefault(handle.mountable_device(device), []).append(place)

        def content(device: str) -> dict[str, Any]:
            kind = handle.vfs_type(device)
            points = sorted(places.get(handle.canonical_device_name(device), []))
            return {"size_bytes": handle.blockdev_getsize64(device), "holds": kind, "mountpoints": points}

        partitions = handle.list_partitions()
        disks = []
        for disk in handle.list_devices():
            mine = [part for part in partitions if handle.part_to_dev(part) == disk]
            table = _table(handle, disk)
            whole = {**content(disk), **({"holds": ""} if table else {}), "table": table}
            disks.append({**whole, "partitions": [{**content(part), "type": _type(handle, part)} for part in mine]})
        lvs = [(path, mapped_name(*path.split("/")[2:4])) for path in handle.lvs()]  # /dev/VG/LV
        volumes = [{**content(path), "kind": "lvm", "name": name} for path, name in lvs]
        for array in handle.list_md_devices():
            volumes.append({**content(array), "kind": handle.md_detail(array).get("level", "md"), "name": ""})
        return {"architecture": architecture, "disks": disks, "volumes": volumes}


def _table(handle: Handle, disk: str) -> str:
    try:
        table: str = handle.part_get_parttype(disk)
    except RuntimeError:
        return ""  # a disk that is one file system or one physical volume
    return "dos" if table == "msdos" else "" if table == "loop" else table


def _type(handle: Handle, partition: str) -> str:
    """A partition's type as lsblk writes it."""
    disk, number = handle.part_to_dev(partition), handle.part_to_partnum(partition)
    if handle.part_get_parttype(disk) == "gpt":
        return str(handle.part_get_gpt_type(disk, number)).lower()
    return f"0x{handle.part_get_mbr_id(disk, number):x}"
