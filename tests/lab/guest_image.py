"""The Debian guest of the lab: built once from a recipe, cached by the recipe's hash, copied per instance.

The disk (GPT): a BIOS boot partition, ext4 /boot (label boot), an LVM volume group vg0 with root (ext4) and var (xfs).
Inside: systemd, sshd (root, by key), guest agent, PostgreSQL and MariaDB (root by their sockets), serial console.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import guestfs

from tests.lab.accelerator import accelerator, cache_folder
from tests.lab.process import LabError
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
# What no test needs: documents, translations, LLVM and its libz3 (for PostgreSQL's JIT, switched off), MariaDB's
# offline tools (4 MB each), names of hardware, drivers and file systems that no guest of the lab has.
_LEFT_OUT = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/i18n/*",
    "/usr/lib/x86_64-linux-gnu/libLLVM-*", "/usr/lib/x86_64-linux-gnu/libz3.so*", "/usr/lib/postgresql/*/lib/bitcode/*",
    "/usr/bin/aria_*", "/usr/bin/myisam*", "/usr/bin/mariadb-slap", "/usr/bin/mariadb-upgrade",
    "/usr/bin/mariadb-binlog", "/usr/bin/mariadb-conv", "/usr/bin/mariadb-import", "/usr/bin/mariadb-plugin",
    "/usr/bin/mariadb-show", "/usr/bin/mariadb-tzinfo-to-sql", "/usr/bin/mariadb-waitpid", "/usr/bin/innochecksum",
    "/usr/bin/perror", "/usr/bin/replace", "/usr/bin/resolveip", "/usr/bin/resolve_stack_dump",
    "/lib/udev/hwdb.d/*", "/usr/lib/udev/hwdb.d/*",
    "/lib/modules/*/kernel/drivers/infiniband/*", "/lib/modules/*/kernel/drivers/net/ethernet/*",
    "/lib/modules/*/kernel/fs/btrfs/*", "/lib/modules/*/kernel/fs/ceph/*", "/lib/modules/*/kernel/fs/gfs2/*",
    "/lib/modules/*/kernel/fs/ocfs2/*", "/lib/modules/*/kernel/fs/smb/*", "/lib/modules/*/kernel/fs/nfs*",
    "/lib/modules/*/kernel/net/[!c]*", "/lib/modules/*/kernel/arch/x86/kvm/*", "/lib/modules/*/kernel/drivers/comedi/*",
    "/lib/modules/*/kernel/drivers/hid/*", "/lib/modules/*/kernel/drivers/target/*",
    "/usr/lib/x86_64-linux-gnu/gconv/*", "/usr/lib/x86_64-linux-gnu/perl/*/CORE/*",
    "/usr/lib/x86_64-linux-gnu/perl/*/auto/Encode/[CJKT]*", "/usr/share/perl/*/Unicode/Collate/*",
)  # fmt: skip


def recipe_hash() -> str:
    """The sha256 of all that the image is made from (this file and the files below guest/)."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(path for path in _GUEST.rglob("*") if path.is_file()):
        digest.update(f"\0{path.relative_to(_GUEST)}\0{os.access(path, os.X_OK)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def guest_image(tell: Say = say) -> Path:
    """The cached image of the current recipe, built when it is not there; images of other recipes are removed."""
    image = cache_folder() / f"guest-{recipe_hash()[:16]}.qcow2"
    with _locked("guest"):
        if not image.exists():
            with _published(image) as partial:
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
    identity = hashlib.sha256(f"{recipe_hash()} {sorted(files.items())}".encode()).hexdigest()
    files["/etc/machine-id"] = (0o444, f"{identity[:32]}\n".encode())
    image = cache_folder() / f"instance-{hostname}-{identity[:16]}.qcow2"
    with _locked(f"instance-{hostname}"):
        if not image.exists():
            with _published(image) as partial, phase(f"guest {hostname}: putting in keys and name", tell):
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


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    with (cache_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _published(path: Path) -> Iterator[Path]:
    """Give a .partial path to write to; it gets its name when the block ends well and is removed otherwise."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _build(image: Path, tell: Say) -> None:
    for stale in cache_folder().glob("building-*"):
        # Of a build that was killed; should anything still be mounted there, it is left alone.
        subprocess.run(["rm", "-rf", "--one-file-system", str(stale)], check=False)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="building-") as folder:
        root_tar = Path(folder, "root.tar")
        with phase("building guest: installing packages", tell):
            _bootstrap(root_tar, Path(folder))
        raw = Path(folder, "disk.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(raw), str(DISK_BYTES)], check=True)
        with contextlib.closing(_appliance(raw, "building guest: starting the libguestfs appliance", tell)) as handle:
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
        raw.rename(image)


def _bootstrap(root_tar: Path, folder: Path) -> None:
    """Make the tar of the guest's root file system with mmdebstrap, from the machine's own package sources."""
    overlay = folder / "overlay.tar"
    with tarfile.open(overlay, "w") as archive:
        archive.add(_GUEST / "root", arcname=".", filter=_as_root)
    argv = ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(PACKAGES)}"]
    argv += ['--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Languages "none"']
    argv += ["--dpkgopt=force-unsafe-io", *(f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT)]
    # Before the packages: MariaDB, PostgreSQL and the initramfs are made by what these files say.
    argv += [f"--essential-hook=tar-in {overlay} /", f"--customize-hook={_GUEST / 'customize.sh'}"]
    log = cache_folder() / "mmdebstrap.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [*argv, "bookworm", str(root_tar)],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            check=False,
            env={**os.environ, "TMPDIR": str(folder), "DEBIAN_FRONTEND": "noninteractive"},
        )
    if done.returncode != 0:
        raise LabError(f"mmdebstrap: exit {done.returncode}; see {log}")


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    # The checkout may belong to anybody and have any umask.
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def _appliance(image: Path, what: str, tell: Say) -> guestfs.GuestFS:
    """Launch libguestfs on an image; close it."""
    handle = guestfs.GuestFS(python_return_dict=True)
    handle.set_backend("direct")
    if accelerator() == "tcg":
        handle.set_backend_settings(["force_tcg"])
        # Emulated, the page-table isolation of the appliance's kernel makes every system call dear.
        handle.set_append("mitigations=off")
    handle.add_drive_opts(str(image), format="qcow2", cachemode="unsafe", discard="besteffort")
    with phase(what, tell):
        handle.launch()
    return handle


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
    with contextlib.closing(_appliance(image, "starting the libguestfs appliance", lambda _line: None)) as handle:
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
