"""A Debian guest with BIOS firmware and one disk whose root is btrfs: the subvolumes @ on / and @home on /home.

/root/upgrade.deb is a kernel of another flavour than its own, for a day on which it is upgraded. No network: it is
talked to by its guest agent.
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

_RECIPE = Path(__file__).parent / "btrfs"
_BIOS_BOOT_TYPE = "21686148-6449-6E6F-744E-656564454649"
_BYTES = 3 << 30
SUBVOLUMES = {"/": "@", "/home": "@home"}
DEVICE = "/dev/sda2"
"""What libguestfs calls the partition that holds them."""
_PACKAGES = (
    "linux-image-cloud-amd64", "initramfs-tools", "kmod", "udev", "systemd", "systemd-sysv", "dbus", "zstd",
    "grub-pc", "btrfs-progs", "qemu-guest-agent", "util-linux-extra",
)  # fmt: skip


def btrfs_image(tell: Say = say) -> Path:
    """The cached image of the current recipe, built when it is not there."""
    image = cache_folder() / f"btrfs-{recipe_hash(Path(__file__), _RECIPE)[:16]}.qcow2"
    with locked("btrfs"):
        if not image.exists():
            with published(image) as partial:
                _build(partial, tell)
            for other in cache_folder().glob("btrfs-*.qcow2"):
                if other != image:
                    other.unlink()
    return image


def _build(image: Path, tell: Say) -> None:
    with building("btrfs") as folder:
        root_tar, overlay, customize = folder / "root.tar", _RECIPE / "root", _RECIPE / "customize.sh"
        with phase("building btrfs guest: installing packages", tell):
            kept = ("/lib/modules/*/kernel/fs/btrfs/*",)
            bootstrap("btrfs", root_tar, packages=_PACKAGES, overlay=overlay, customize=customize, kept=kept)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(_BYTES)], check=True)
        what = "building btrfs guest: starting the libguestfs appliance"
        with contextlib.closing(appliance([(image, "qcow2")], what, tell)) as handle:
            with phase("building btrfs guest: subvolumes and files", tell):
                handle.part_init("/dev/sda", "gpt")
                handle.part_add("/dev/sda", "p", 2048, 4095)
                handle.part_add("/dev/sda", "p", 4096, _BYTES // 512 - 2048)
                handle.part_set_gpt_type("/dev/sda", 1, _BIOS_BOOT_TYPE)
                handle.mkfs("btrfs", DEVICE, label="root")
                handle.mount(DEVICE, "/")
                for name in SUBVOLUMES.values():
                    handle.btrfs_subvolume_create(f"/{name}")
                handle.umount("/")
                handle.mount_options("subvol=@", DEVICE, "/")
                handle.mkdir("/home")
                handle.mount_options("subvol=@home", DEVICE, "/home")
                handle.tar_in(str(root_tar), "/", xattrs=True)
            with phase("building btrfs guest: installing GRUB", tell):
                # Inside, the kernel may have given the disk another name than libguestfs shows (sdb for sda).
                handle.sh("grub-install --target=i386-pc $(grub-probe --target=disk /boot)")
                handle.sh("update-grub")
            handle.umount_all()
            handle.shutdown()


@dataclasses.dataclass
class BtrfsGuest(AgentGuest):
    """The guest."""

    @property
    def disks(self) -> dict[str, str]:
        """The host's paths of its images, by target."""
        return {"vda": f"{FOLDER}/{self.name}.qcow2"}

    def domain_xml(self) -> str:
        """Its libvirt definition."""
        return domain_xml(self.name, 768, "<os>", disk_xml("vda", "qcow2", self.disks["vda"]))
