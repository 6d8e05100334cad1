"""How images of the lab's Debian guests are built and cached: files by mmdebstrap, put on a disk by libguestfs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import guestfs

from tests.lab.accelerator import accelerator, cache_folder
from tests.lab.process import LabError
from tests.lab.progress import Say, phase

# What no guest of the lab needs: documents, translations, names of hardware, drivers and file systems.
_LEFT_OUT = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/i18n/*",
    "/lib/udev/hwdb.d/*", "/usr/lib/udev/hwdb.d/*", "/usr/lib/x86_64-linux-gnu/gconv/*",
    "/lib/modules/*/kernel/drivers/infiniband/*", "/lib/modules/*/kernel/drivers/net/ethernet/*",
    "/lib/modules/*/kernel/fs/btrfs/*", "/lib/modules/*/kernel/fs/ceph/*", "/lib/modules/*/kernel/fs/gfs2/*",
    "/lib/modules/*/kernel/fs/ocfs2/*", "/lib/modules/*/kernel/fs/smb/*", "/lib/modules/*/kernel/fs/nfs*",
    "/lib/modules/*/kernel/net/[!c]*", "/lib/modules/*/kernel/arch/x86/kvm/*", "/lib/modules/*/kernel/drivers/comedi/*",
    "/lib/modules/*/kernel/drivers/hid/*", "/lib/modules/*/kernel/drivers/target/*",
)  # fmt: skip


def recipe_hash(*sources: Path) -> str:
    """The sha256 of all that an image is made from: this file and `sources`, files or folders."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for source in sources:
        for path in sorted(path for path in (source, *source.rglob("*")) if path.is_file()):
            digest.update(f"\0{path.relative_to(source.parent)}\0{os.access(path, os.X_OK)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Nobody else builds the image `name` while the block runs."""
    with (cache_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def published(path: Path) -> Iterator[Path]:
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


@contextlib.contextmanager
def building(name: str) -> Iterator[Path]:
    """A folder of the cache to build in."""
    for stale in cache_folder().glob(f"building-{name}-*"):
        # Of a build that was killed; should anything still be mounted there, it is left alone.
        subprocess.run(["rm", "-rf", "--one-file-system", str(stale)], check=False)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=f"building-{name}-") as folder:
        yield Path(folder)


def bootstrap(
    name: str,
    root_tar: Path,
    *,
    packages: Sequence[str],
    overlay: Path,
    customize: Path,
    left_out: Sequence[str] = (),
    kept: Sequence[str] = (),
) -> None:
    """Make the tar of guest `name`'s root file system with mmdebstrap, from the machine's own package sources.

    The files below `overlay` are there before the packages are; the hook `customize` runs at the end. `left_out` are
    paths of packages that are not unpacked, besides what no guest needs; those of it that match `kept` are.
    """
    files = root_tar.with_name("overlay.tar")
    with tarfile.open(files, "w") as archive:
        archive.add(overlay, arcname=".", filter=_as_root)
    argv = ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(packages)}"]
    argv += ['--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Languages "none"']
    argv += ["--dpkgopt=force-unsafe-io", *(f"--dpkgopt=path-exclude={path}" for path in (*_LEFT_OUT, *left_out))]
    argv += [f"--dpkgopt=path-include={path}" for path in kept]
    argv += [f"--essential-hook=tar-in {files} /", f"--customize-hook={customize}"]
    log = cache_folder() / f"mmdebstrap-{name}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [*argv, "bookworm", str(root_tar)],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            check=False,
            env={**os.environ, "TMPDIR": str(root_tar.parent), "DEBIAN_FRONTEND": "noninteractive"},
        )
    if done.returncode != 0:
        raise LabError(f"mmdebstrap: exit {done.returncode}; see {log}")


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    # The checkout may belong to anybody and have any umask.
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def appliance(disks: Sequence[tuple[Path, str]], what: str, tell: Say) -> guestfs.GuestFS:
    """Launch libguestfs on disks (path and format); close it."""
    handle = guestfs.GuestFS(python_return_dict=True)
    handle.set_backend("direct")
    if accelerator() == "tcg":
        handle.set_backend_settings(["force_tcg"])
        # Emulated, the page-table isolation of the appliance's kernel makes every system call dear.
        handle.set_append("mitigations=off")
    for path, disk_format in disks:
        handle.add_drive_opts(str(path), format=disk_format, cachemode="unsafe", discard="besteffort")
    with phase(what, tell):
        handle.launch()
    return handle
