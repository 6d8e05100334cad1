"""What a copy of a template needs before it boots as a client, beside the client's files: rules, and scripts for sh(1).

GRUB for a BIOS lies beside the file systems, in sectors of the disk, and stays the template's. It finds its modules by
a partition's number or by LVM's own UUIDs, which an adoption leaves alone; only where /boot is on another disk does it
search for a file system's UUID, which is in `load.cfg` beside the modules then. UEFI is the reverse: the loader is a
file, but which file is in the firmware's variables, and a new VM has none.
"""

import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tasks.model.facts import Facts
from tasks.model.facts_boot import BootMode

LOAD_CONFIGS = ("/boot/grub/i386-pc/load.cfg", "/boot/grub2/i386-pc/load.cfg")
CORE_IMAGES = ("/boot/grub/i386-pc/core.img", "/boot/grub2/i386-pc/core.img")
EFI_FOLDERS = ("/boot/efi", "/efi", "/boot")
_SUFFIXES = {"x86_64": "x64", "aarch64": "aa64", "i686": "ia32"}
_SEARCHED = re.compile(r"^\s*search\.fs_uuid\s+(\S+)", re.M)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.I)
VIRTIO = ("virtio_pci", "virtio_blk")
"""What a kernel needs to find a VM's virtio disk."""
# On the disk that the client's id of its table names: the appliance may call it anything.
INSTALL_GRUB = """for folder in /sys/block/*; do
disk=/dev/${{folder##*/}}
[ "$(blkid -p -s PTUUID -o value "$disk" 2> /dev/null)" = {table} ] || continue
for tool in grub-install grub2-install; do
command -v $tool > /dev/null && exec $tool --target=i386-pc "$disk"
done
done
echo "no disk, or no grub-install" >&2
exit 1"""
# `modules.builtin` and both listings name modules as paths, `kernel/drivers/block/virtio_blk.ko.xz`.
INITRAMFS = """lacks() {{ for driver in {drivers}; do
grep -q "/$driver\\.ko" "/lib/modules/$version/modules.builtin" && continue
echo "$listed" | grep -q "/$driver\\.ko" || return 0
done; return 1; }}
for kernel in /boot/vmlinuz-*; do
version=${{kernel#/boot/vmlinuz-}}
[ -d "/lib/modules/$version" ] || continue
if [ -e "/boot/initrd.img-$version" ] && command -v mkinitramfs > /dev/null; then
image=/boot/initrd.img-$version
listed=$(lsinitramfs "$image")
lacks || continue
folder=$(mktemp -d) && cp -a /etc/initramfs-tools/. "$folder" && mkdir -p "$folder/conf.d" || exit 1
echo MODULES=most > "$folder/conf.d/zz-gbs"
for driver in {drivers}; do echo "$driver"; done >> "$folder/modules"
mkinitramfs -d "$folder" -o "$image" "$version" >&2 || exit 1
rm -rf "$folder"
listed=$(lsinitramfs "$image")
elif [ -e "/boot/initramfs-$version.img" ] && command -v dracut > /dev/null; then
image=/boot/initramfs-$version.img
listed=$(lsinitrd "$image")
lacks || continue
dracut --force --no-hostonly --add-drivers "{drivers}" "$image" "$version" >&2 || exit 1
listed=$(lsinitrd "$image")
else
echo "unknown $version"
continue
fi
if lacks; then echo "unknown $version"; else echo "made $version"; fi
done"""


@dataclass(frozen=True)
class Repair:
    """What is looked after: how the client boots, the id of the first disk's partition table, drivers, card names.

    `drivers` are those that its kernels must find in their initramfs, none when the VM is the one that they were made
    on. `cards` are names of network cards by their MAC, for a machine whose cards sat elsewhere.
    """

    boot_mode: BootMode
    architecture: str
    table_id: str
    drivers: tuple[str, ...] = ()
    cards: tuple[tuple[str, str], ...] = ()


def repair_of(facts: Facts, *, was_physical: bool) -> Repair:
    """What to look after on a client's disks."""
    first = next((device for device in facts.block_devices if device.parent is None), None)
    cards = [(row.name, row.mac or "") for row in facts.interfaces or () if not row.kind and row.mac]
    safe = [(name, mac.lower()) for name, mac in cards if _NAME.fullmatch(name) and _MAC.fullmatch(mac)]
    return Repair(
        boot_mode=facts.boot_mode,
        architecture=facts.architecture,
        table_id=(first.table_uuid or "") if first else "",
        drivers=VIRTIO if was_physical else (),
        cards=tuple(safe) if was_physical else (),
    )


def lost_search(load_config: str, known: Collection[str]) -> str | None:
    """The UUID that GRUB's core image searches for and no file system has; None when it finds what it needs."""
    found = _SEARCHED.search(load_config)
    return found[1] if found and f"uuid={found[1].lower()}" not in known else None


def install_script(table_id: str) -> str:
    """Writes GRUB's core image for a BIOS again, with the client's own grub-install."""
    return INSTALL_GRUB.format(table=shlex.quote(table_id))


def initramfs_script(drivers: Iterable[str]) -> str:
    """Makes each initramfs that lacks a driver again, with the client's own tools; lines `made` or `unknown` VERSION.

    Without the settings that fit it to the hardware it is made on: that is the appliance, not the VM.
    """
    return INITRAMFS.format(drivers=" ".join(map(shlex.quote, drivers)))


def removable_copies(files: Mapping[str, Collection[str]], architecture: str) -> dict[str, str]:
    """Which files of an EFI system partition to copy (target: source) so that a firmware without variables boots.

    `files` are the names in each folder of EFI. Nothing when the removable path is there, or no loader is known.
    """
    suffix = _SUFFIXES.get(architecture, "")
    default = f"boot{suffix}.efi"
    folders = {folder: {name.lower(): name for name in names} for folder, names in files.items()}
    removable = next((folder for folder in folders if folder.lower() == "boot"), "BOOT")
    if not suffix or default in folders.get(removable, {}):
        return {}
    for first, others in ((f"shim{suffix}.efi", (f"grub{suffix}.efi", f"mm{suffix}.efi")), (f"grub{suffix}.efi", ())):
        for folder, names in sorted(folders.items()):
            if folder != removable and first in names:
                copies = {f"{removable}/{default.upper()}": f"{folder}/{names[first]}"}
                there = [other for other in others if other in names]
                return copies | {f"{removable}/{names[other]}": f"{folder}/{names[other]}" for other in there}
    name = next(
        (
            names[f"systemd-boot{suffix}.efi"]
            for folder, names in folders.items()
            if folder == "systemd" and f"systemd-boot{suffix}.efi" in names
        ),
        None,
    )
    return {f"{removable}/{default.upper()}": f"systemd/{name}"} if name else {}


def link_file(name: str, mac: str) -> tuple[str, str]:
    """Path and text of a systemd.link(5) that gives a card the name that the client's configuration knows."""
    return f"/etc/systemd/network/10-gbs-{name}.link", f"[Match]\nMACAddress={mac}\n\n[Link]\nName={name}\n"
