"""A Debian guest with UEFI firmware and two disks: vda (qcow2) with the system, vdb (raw) with /srv.

vda (GPT): an EFI system partition and an ext4 root. Its boot loader lies where only the firmware's own variables name
it (EFI/debian, not EFI/BOOT): a guest whose variables are lost does not start. No network: it is talked to by its guest
agent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
from pathlib import Path

from tests.lab.accelerator import cache_folder
from tests.lab.agent_guest import FOLDER, AgentGuest
from tests.lab.guest import disk_xml, domain_xml
from tests.lab.guest_build import appliance, bootstrap, building, locked, published, recipe_hash
from tests.lab.progress import Say, phase, say

_RECIPE = Path(__file__).parent / "uefi"
_ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_MIB = 1 << 20
SYSTEM_BYTES = 2 << 30
DATA_BYTES = 256 * _MIB
PACKAGES = (
    "linux-image-cloud-amd64", "initramfs-tools", "kmod", "udev", "systemd", "systemd-sysv", "dbus", "zstd",
    "grub-efi-amd64", "efibootmgr", "e2fsprogs", "qemu-guest-agent",
)  # fmt: skip


def uefi_images(tell: Say = say) -> tuple[Path, Path]:
    """The cached images of the current recipe, of the system and of the data; built when they are not there."""
    name = f"uefi-{recipe_hash(Path(__file__), _RECIPE)[:16]}"
    system, data = cache_folder() / f"{name}-system.qcow2", cache_folder() / f"{name}-data.raw"
    with locked("uefi"):
        if not (system.exists() and data.exists()):
            with published(system) as system_partial, published(data) as data_partial:
                _build(system_partial, data_partial, tell)
            for other in cache_folder().glob("uefi-*-*"):
                if not other.name.startswith(name):
                    other.unlink()
    return system, data


def _build(system: Path, data: Path, tell: Say) -> None:
    with building("uefi") as folder:
        root_tar = folder / "root.tar"
        with phase("building UEFI guest: installing packages", tell):
            customize = _RECIPE / "customize.sh"
            bootstrap("uefi", root_tar, packages=PACKAGES, overlay=_RECIPE / "root", customize=customize)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(system), str(SYSTEM_BYTES)], check=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "raw", str(data), str(DATA_BYTES)], check=True)
        what = "building UEFI guest: starting the libguestfs appliance"
        disks = [(system, "qcow2"), (data, "raw")]
        with contextlib.closing(appliance(disks, what, tell)) as handle:
            with phase("building UEFI guest: file systems and files", tell):
                handle.part_init("/dev/sda", "gpt")
                esp_end = 2048 + 64 * _MIB // 512
                handle.part_add("/dev/sda", "p", 2048, esp_end - 1)
                handle.part_add("/dev/sda", "p", esp_end, SYSTEM_BYTES // 512 - 2048)
                handle.part_set_gpt_type("/dev/sda", 1, _ESP_TYPE)
                handle.mkfs("vfat", "/dev/sda1", label="ESP")
                handle.mkfs("ext4", "/dev/sda2", label="root")
                handle.mkfs("ext4", "/dev/sdb", label="data")
                handle.mount("/dev/sda2", "/")
                handle.tar_in(str(root_tar), "/", xattrs=True)
                handle.mkdir_p("/boot/efi")
                handle.mount("/dev/sda1", "/boot/efi")
            with phase("building UEFI guest: installing GRUB", tell):
                # Where any firmware finds it, until the guest itself has told its own firmware (UefiGuest.settle).
                handle.sh("grub-install --target=x86_64-efi --removable --no-nvram")
                handle.sh("update-grub")
            handle.umount_all()
            handle.shutdown()


@dataclasses.dataclass
class UefiGuest(AgentGuest):
    """The guest with two disks."""

    @property
    def disks(self) -> dict[str, str]:
        """The host's paths of its images, by target."""
        return {"vda": f"{FOLDER}/{self.name}-system.qcow2", "vdb": f"{FOLDER}/{self.name}-data.raw"}

    @property
    def variables(self) -> str:
        """The host's path of its UEFI variables."""
        return f"/var/lib/libvirt/qemu/nvram/{self.name}_VARS.fd"

    def install(self) -> None:
        """Define it, start it, and let it tell its firmware where its boot loader lies."""
        self.define(*uefi_images())
        self.start()
        self.run("grub-install --target=x86_64-efi && rm -r /boot/efi/EFI/BOOT && sync")

    def domain_xml(self) -> str:
        """Its libvirt definition."""
        features = "".join(f"<feature enabled='no' name='{name}'/>" for name in ("secure-boot", "enrolled-keys"))
        firmware = f"<os firmware='efi'><firmware>{features}</firmware>"
        formats = {"vda": "qcow2", "vdb": "raw"}
        disks = "".join(disk_xml(target, formats[target], path) for target, path in self.disks.items())
        return domain_xml(self.name, 512, firmware, disks)
