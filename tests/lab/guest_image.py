"""The Debian guest of the lab: built once from a recipe, cached by the recipe's hash, copied per instance.

The disk (GPT): a BIOS boot partition, ext4 /boot (label boot), an LVM volume group vg0 with root (ext4) and var (xfs).
Inside: systemd, sshd (root, by key), guest agent, PostgreSQL and MariaDB (root by their sockets), serial console.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import guestfs

from tests.lab.accelerator import cache_folder
from tests.lab.guest_build import appliance, bootstrap, building, locked, published, recipe_hash
from tests.lab.progress import Say, phase, say

_GUEST = Path(__file__).parent / "guest"
DISK_BYTES = 6 << 30
_MIB = 1 << 20
_BIOS_BOOT_TYPE = "21686148-6449-6E6F-744E-656564454649"
_LVM_TYPE = "E6D6D379-F507-44C2-A23C-238F2A3DF928"

PACKAGES = (
    "linux-image-cloud-amd64", "initramfs-tools", "kmod", "udev", "systemd", "systemd-sysv", "dbus", "zstd",
    "grub-pc", "lvm2", "xfsprogs", "iproute2", "procps", "openssh-server", "rsync", "qemu-guest-agent",
    "postgresql", "mariadb-server", "acl", "attr", "libcap2-bin",
)  # fmt: skip
# What no test needs: LLVM and its libz3 (for PostgreSQL's JIT, switched off), MariaDB's offline tools (4 MB each).
_LEFT_OUT = (
    "/usr/lib/x86_64-linux-gnu/libLLVM-*", "/usr/lib/x86_64-linux-gnu/libz3.so*", "/usr/lib/postgresql/*/lib/bitcode/*",
    "/usr/bin/aria_*", "/usr/bin/myisam*", "/usr/bin/mariadb-slap", "/usr/bin/mariadb-upgrade",
    "/usr/bin/mariadb-binlog", "/usr/bin/mariadb-conv", "/usr/bin/mariadb-import", "/usr/bin/mariadb-plugin",
    "/usr/bin/mariadb-show", "/usr/bin/mariadb-tzinfo-to-sql", "/usr/bin/mariadb-waitpid", "/usr/bin/innochecksum",
    "/usr/bin/perror", "/usr/bin/replace", "/usr/bin/resolveip", "/usr/bin/resolve_stack_dump",
    "/usr/lib/x86_64-linux-gnu/perl/*/CORE/*", "/usr/lib/x86_64-linux-gnu/perl/*/auto/Encode/[CJKT]*",
    "/usr/share/perl/*/Unicode/Collate/*", "/usr/share/zoneinfo/right/*", "/usr/share/bash-completion/completions/*",
    "/usr/share/lintian/*", "/usr/share/postgresql-common/t/*",
)  # fmt: skip


def image_id() -> str:
    """What names the image of the current recipe."""
    return recipe_hash(Path(__file__), _GUEST)[:16]


def guest_image(tell: Say = say) -> Path:
    """The cached image of the current recipe, built when it is not there; images of other recipes are removed."""
    image = cache_folder() / f"guest-{image_id()}.qcow2"
    with locked("guest"):
        if not image.exists():
            with published(image) as partial:
                _build(partial, tell)
            for other in cache_folder().glob("guest-*.qcow2"):
                if other != image:
                    other.unlink()
            for stale in cache_folder().glob("instance-*.qcow2"):
                stale.unlink()
    return image


def instance_image(hostname: str, authorized_key: str, host_key: Path, tell: Say = say) -> Path:
    """The cached image with a host name, root's authorized key and an ssh host key pair (host_key, host_key.pub) in it.

    Made from `guest_image` when it is not there (one appliance launch). For a VM, copy it (`copy_image`).
    """
    base = guest_image(tell)
    public = host_key.with_name(host_key.name + ".pub")
    files = {
        "/root/.ssh/authorized_keys": (0o600, authorized_key.encode() + b"\n"),
        "/etc/ssh/ssh_host_ed25519_key": (0o600, host_key.read_bytes()),
        "/etc/ssh/ssh_host_ed25519_key.pub": (0o644, public.read_bytes()),
        "/etc/hostname": (0o644, f"{hostname}\n".encode()),
        "/etc/hosts": (0o644, f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n".encode()),
    }
    identity = hashlib.sha256(f"{image_id()} {sorted(files.items())}".encode()).hexdigest()
    files["/etc/machine-id"] = (0o444, f"{identity[:32]}\n".encode())
    image = cache_folder() / f"instance-{hostname}-{identity[:16]}.qcow2"
    with locked(f"instance-{hostname}"):
        if not image.exists():
            with published(image) as partial, phase(f"guest {hostname}: putting in keys and name", tell):
                copy_image(base, partial)
                _write_files(partial, files)
            for other in cache_folder().glob(f"instance-{hostname}-*.qcow2"):
                if other != image:
                    other.unlink()
    return image


def copy_image(source: Path, target: Path) -> None:
    """Make target a full, independent, still sparse copy of source."""
    argv = ["cp", "--sparse=always", "--reflink=auto", str(source), str(target)]
    subprocess.run(argv, check=True)


def _build(image: Path, tell: Say) -> None:
    with building("guest") as folder:
        root_tar, disk = folder / "root.tar", folder / "disk.qcow2"
        with phase("building guest: installing packages", tell):
            # Before the packages: MariaDB, PostgreSQL and the initramfs are made by what these files say.
            overlay, customize = _GUEST / "root", _GUEST / "customize.sh"
            bootstrap("guest", root_tar, packages=PACKAGES, overlay=overlay, customize=customize, left_out=_LEFT_OUT)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), str(DISK_BYTES)], check=True)
        what = "building guest: starting the libguestfs appliance"
        with contextlib.closing(appliance([(disk, "qcow2")], what, tell)) as handle:
            with phase("building guest: partitions, LVM and file systems", tell):
                _make_file_systems(handle)
            with phase("building guest: copying the files in", tell):
                handle.tar_in(str(root_tar), "/", xattrs=True)
            with phase("building guest: installing GRUB", tell):
                # Inside, the kernel may have given the disk another name than libguestfs shows (sdb for sda).
                handle.sh("grub-install --target=i386-pc $(grub-probe --target=disk /boot)")
                handle.sh("update-grub")
            handle.umount_all()
            handle.shutdown()
        disk.rename(image)


def _make_file_systems(handle: guestfs.GuestFS) -> None:
    """Partition /dev/sda, make LVM and file systems and mount them as the guest will."""
    handle.part_init("/dev/sda", "gpt")
    sectors = DISK_BYTES // 512
    boot_end = 4096 + 300 * _MIB // 512
    handle.part_add("/dev/sda", "p", 2048, 4095)
    handle.part_add("/dev/sda", "p", 4096, boot_end - 1)
    handle.part_add("/dev/sda", "p", boot_end, sectors - 2048)
    handle.part_set_gpt_type("/dev/sda", 1, _BIOS_BOOT_TYPE)
    handle.part_set_gpt_type("/dev/sda", 3, _LVM_TYPE)
    handle.pvcreate("/dev/sda3")
    handle.vgcreate("vg0", ["/dev/sda3"])
    handle.lvcreate("root", "vg0", 3 * 1024)
    handle.lvcreate("var", "vg0", 2 * 1024)
    handle.mkfs("ext4", "/dev/sda2", label="boot")
    handle.mkfs("ext4", "/dev/vg0/root", label="root")
    handle.mkfs("xfs", "/dev/vg0/var", label="var")
    for device, mountpoint in (("/dev/vg0/root", "/"), ("/dev/sda2", "/boot"), ("/dev/vg0/var", "/var")):
        if mountpoint != "/":
            handle.mkdir(mountpoint)
        handle.mount(device, mountpoint)


def _write_files(image: Path, files: dict[str, tuple[int, bytes]]) -> None:
    """Write files (path: mode, content) as root's into an image of the guest."""
    what = "starting the libguestfs appliance"
    with contextlib.closing(appliance([(image, "qcow2")], what, lambda _line: None)) as handle:
        for device, mountpoint in (("/dev/vg0/root", "/"), ("/dev/sda2", "/boot"), ("/dev/vg0/var", "/var")):
            handle.mount(device, mountpoint)
        for path, (mode, content) in files.items():
            folder = os.path.dirname(path)
            if not handle.is_dir(folder):
                handle.mkdir_mode(folder, 0o700)
            handle.write(path, content)
            handle.chmod(mode, path)
        handle.umount_all()
        handle.shutdown()


def remove_cache() -> None:
    """Remove every image of the cache."""
    shutil.rmtree(cache_folder(), ignore_errors=True)
