"""Make a client's disks, which were a template's, boot in a new VM: loader, initramfs, names of network cards.

What a program of the client must do (grub-install, mkinitramfs, dracut) it does in libguestfs' appliance, which reaches
nothing, and only where something is found missing.
"""

from collections.abc import Collection
from typing import Any

from tasks.drivers import appliance_mounts
from tasks.drivers.appliance_session import Handle, Reporter, launched
from tasks.errors import CommandFailed
from tasks.model import boot_repair
from tasks.model.boot_names import known_names
from tasks.model.boot_repair import Repair
from tasks.model.image_update import MountedBy


def make_bootable(request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Do what `tasks.drivers.adoption.make_bootable` promises."""
    mounts = [MountedBy(**row) for row in request["file_systems"]]
    repair = Repair(**request["repair"])
    done, warnings = list[str](), list[str]()
    with launched(request, [], readonly=False) as handle:
        reporter.now("looking at the boot loader")
        devices = appliance_mounts.devices(handle)
        found = appliance_mounts.find(handle, request["image"], mounts, devices)
        appliance_mounts.mount(handle, request["image"], found)
        if repair.boot_mode == "uefi":
            _removable_loader(handle, repair, done, warnings)
        elif (reason := _why_install(handle, known_names(devices))) and repair.table_id:
            _in_client(handle, boot_repair.install_script(repair.table_id), "grub-install")
            done.append(f"GRUB was written to the first disk: {reason}")
        elif reason:
            # Facts of an old lsblk: which of the appliance's disks is the first cannot be told.
            warnings.append(f"GRUB has to be written by hand (grub-install), or the VM does not boot: {reason}")
        if repair.drivers:
            reporter.now("looking into each initramfs")
            _initramfs(handle, repair, done, warnings)
        _name_cards(handle, repair, done)
        handle.umount_all()
        handle.shutdown()
    return {"done": done, "warnings": warnings}


def _in_client(handle: Handle, script: str, name: str) -> str:
    try:
        said: str = handle.sh(script)
    except RuntimeError as error:
        raise CommandFailed(f"{name} on the client's disks", 1, " ".join(str(error).split())[-500:]) from error
    return said


def _why_install(handle: Handle, known: Collection[str]) -> str | None:
    """Why GRUB's core image would not start, or None when it would (or when another loader starts the client)."""
    for config, core in zip(boot_repair.LOAD_CONFIGS, boot_repair.CORE_IMAGES, strict=True):
        menu = f"{config.rsplit('/', 2)[0]}/grub.cfg"
        if not handle.is_file(menu):
            continue
        if not handle.is_file(core):
            return "the template had none"
        if handle.is_file(config):
            lost = boot_repair.lost_search(handle.read_file(config).decode("utf-8", "replace"), known)
            if lost is not None:
                return f"it searched for the template's file system {lost}"
    return None


def _removable_loader(handle: Handle, repair: Repair, done: list[str], warnings: list[str]) -> None:
    """Put the client's loader where a firmware without variables looks for it."""
    root = next((f"{place}/EFI" for place in boot_repair.EFI_FOLDERS if handle.is_dir(f"{place}/EFI")), None)
    if root is None:
        warnings.append("the night has no EFI system partition: the VM may not boot")
        return
    files = {name: handle.ls(f"{root}/{name}") for name in handle.ls(root) if handle.is_dir(f"{root}/{name}")}
    copies = boot_repair.removable_copies(files, repair.architecture)
    for target, source in copies.items():
        handle.mkdir_p(f"{root}/{target.rsplit('/', 1)[0]}")
        handle.cp(f"{root}/{source}", f"{root}/{target}")
        done.append(f"{root}/{source} was copied to {target}, where a VM without UEFI variables looks")
    if not copies and "boot" not in map(str.lower, files):
        warnings.append(f"no known boot loader is in {root}: the VM may not boot")


def _initramfs(handle: Handle, repair: Repair, done: list[str], warnings: list[str]) -> None:
    said = _in_client(handle, boot_repair.initramfs_script(repair.drivers), "making an initramfs")
    for line in said.splitlines():
        word, _, version = line.partition(" ")
        if word == "made":
            done.append(f"the initramfs of {version} was made again, with {', '.join(repair.drivers)}")
        elif word == "unknown":
            warnings.append(
                f"whether kernel {version} finds a virtio disk is not known: no initramfs that GBS can read"
            )


def _name_cards(handle: Handle, repair: Repair, done: list[str]) -> None:
    """Let the network cards have the names that the client's configuration gives them addresses by."""
    if not repair.cards or not handle.is_dir("/etc/systemd"):
        return
    handle.mkdir_p("/etc/systemd/network")
    for name, mac in repair.cards:
        path, text = boot_repair.link_file(name, mac)
        handle.write(path, text.encode())
        done.append(f"card {mac} is called {name} ({path})")
