"""Give a copy of a template a client's identity, in libguestfs' appliance: ids, labels, LVM's names."""

import re
import shlex
import struct
from typing import Any

from tasks.drivers.appliance_session import Handle, Reporter, launched
from tasks.errors import IntegrityError
from tasks.model.adoption import Adoption, Holding, PartitionId, Place, Table
from tasks.model.volume_names import Names, path_of

_PV_UUID = re.compile(r"[0-9A-Za-z]{6}(-[0-9A-Za-z]{4}){5}-[0-9A-Za-z]{6}")
# LVM sets a given UUID only of a physical volume that is made anew, where its group's description has it already.
_SET_PV_UUID = """set -e
device=$(lvm pvs --noheadings -o pv_name -S pv_uuid={old})
lvm vgcfgbackup -f /tmp/gbs-vg {group}
sed -i s/{old}/{new}/ /tmp/gbs-vg
lvm pvcreate -ff -y --uuid {new} --restorefile /tmp/gbs-vg $device
lvm vgcfgrestore -f /tmp/gbs-vg {group}
"""
# libguestfs's own call refuses names with blanks, and it may call the disk otherwise than the appliance does.
_SET_NAME = """for folder in /sys/block/*; do
disk=/dev/${{folder##*/}}
[ "$(blkid -p -s PTUUID -o value "$disk" 2> /dev/null)" = {table} ] && exec sgdisk -c {name} "$disk"
done
exit 1"""
_FAT32_ID, _FAT16_ID, _DOS_ID = 67, 39, 440
"""Where a FAT and a dos partition table keep their ids, in bytes (fatgen103, https://wiki.osdev.org/MBR_(x86))."""


def adopt(request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Do what `tasks.drivers.adoption.adopt` promises."""
    wanted = Adoption.model_validate(request["adoption"])
    with launched(request, [], readonly=False) as handle:
        reporter.now("giving LVM's volumes their names")
        rename_volumes(handle, wanted.names)
        reporter.now("giving file systems their UUIDs and labels")
        layout = _layout(handle)
        for holding in wanted.holdings:
            device = holding.place.volume or layout[holding.place]
            _set_holding(handle, request["image"], device, holding)
        # From here on nothing may use the partitions.
        groups = {group: list(map(_dashed, handle.vgpvuuids(group))) for group in handle.vgs()}
        handle.vg_activate_all(False)
        reporter.now("giving partitions their ids")
        for volume in wanted.physical_volumes:
            _set_physical_volume(handle, volume.place.volume or layout[volume.place], volume.uuid, groups)
        for table in wanted.tables:
            _set_table(handle, layout[Place(disk=table.disk)], table)
        for partition in wanted.partitions:
            _set_partition(handle, layout[Place(disk=partition.place.disk)], layout[partition.place], partition)
        handle.shutdown()
    return {}


def _layout(handle: Handle) -> dict[Place, str]:
    """The devices of all disks and partitions, as `tasks.drivers.appliance_layout` counts them."""
    layout, disks = dict[Place, str](), list[str](handle.list_devices())
    counts = dict.fromkeys(disks, 0)
    for number, disk in enumerate(disks, start=1):
        layout[Place(disk=number)] = disk
    for partition in handle.list_partitions():
        disk = handle.part_to_dev(partition)
        counts[disk] += 1
        layout[Place(disk=disks.index(disk) + 1, partition=counts[disk])] = partition
    return layout


def rename_volumes(handle: Handle, names: Names) -> None:
    """Rename groups, then volumes; by names that are nobody's in between, for two may change theirs with each other."""
    groups = dict.fromkeys((row.group, row.new_group) for row in names if row.group != row.new_group)
    for number, (old, _) in enumerate(groups):
        handle.vgrename(old, f"gbs-{number}")
    for number, (_, new) in enumerate(groups):
        handle.vgrename(f"gbs-{number}", new)
    volumes = [row for row in names if row.volume != row.new_volume]
    for number, row in enumerate(volumes):
        handle.lvrename(path_of(row.new_group, row.volume), path_of(row.new_group, f"gbs-{number}"))
    for number, row in enumerate(volumes):
        handle.lvrename(path_of(row.new_group, f"gbs-{number}"), path_of(row.new_group, row.new_volume))


def _set_holding(handle: Handle, image: str, device: str, holding: Holding) -> None:
    """Set UUID and label of a file system or swap, after its journal was replayed: the tools want it clean."""
    kind = handle.vfs_type(device)
    if kind != holding.fstype:
        raise IntegrityError(image, f"{holding.fstype} on {device}", kind)
    if kind.startswith("ext"):
        handle.e2fsck(device, correct=True)
    elif kind in ("xfs", "btrfs"):
        handle.mount(device, "/")
        handle.umount_all()
    if handle.vfs_uuid(device).lower() != holding.uuid.lower():
        if kind == "vfat":
            _set_fat_id(handle, device, holding.uuid)
        else:
            handle.set_uuid(device, holding.uuid)
    # Of a FAT that has a label it is left, where the client's has none: no tool takes it away.
    if handle.vfs_label(device) != holding.label and (holding.label or kind != "vfat"):
        handle.set_label(device, holding.label)


def _set_fat_id(handle: Handle, device: str, uuid: str) -> None:
    """Write a FAT's volume id (`1A2B-3C4D`), in the copy of its boot sector too."""
    sector, value = handle.pread_device(device, 512, 0), struct.pack("<I", int(uuid.replace("-", ""), 16))
    if sector[82:87] != b"FAT32":
        handle.pwrite_device(device, value, _FAT16_ID)
        return
    handle.pwrite_device(device, value, _FAT32_ID)
    sector_bytes, copy = struct.unpack_from("<H", sector, 11)[0], struct.unpack_from("<H", sector, 50)[0]
    if 0 < copy < 32:
        handle.pwrite_device(device, value, copy * sector_bytes + _FAT32_ID)


def _dashed(uuid: str) -> str:
    """A UUID of LVM's as blkid writes it: libguestfs tells some with dashes, some without."""
    plain = uuid.replace("-", "")
    return "-".join((plain[:6], *(plain[at : at + 4] for at in range(6, 26, 4)), plain[26:]))


def _set_physical_volume(handle: Handle, device: str, uuid: str, groups: dict[str, list[str]]) -> None:
    """Some distributions know the devices that LVM may use by these UUIDs (/etc/lvm/devices/system.devices)."""
    old = handle.vfs_uuid(device)
    group = next((name for name, uuids in groups.items() if old in uuids), None)
    if group is not None and old != uuid and _PV_UUID.fullmatch(uuid):
        script = _SET_PV_UUID.format(group=group, old=old, new=uuid)
        handle.debug("sh", [script])


def _set_table(handle: Handle, disk: str, table: Table) -> None:
    if table.kind == "gpt":
        handle.part_set_disk_guid(disk, table.id)
    else:
        handle.pwrite_device(disk, struct.pack("<I", int(table.id, 16)), _DOS_ID)


def _set_partition(handle: Handle, disk: str, device: str, partition: PartitionId) -> None:
    number = handle.part_to_partnum(device)
    handle.part_set_gpt_guid(disk, number, partition.guid)
    if handle.part_get_name(disk, number) != partition.name:
        table, name = handle.part_get_disk_guid(disk).lower(), shlex.quote(f"{number}:{partition.name}")
        handle.debug("sh", [_SET_NAME.format(table=table, name=name)])
