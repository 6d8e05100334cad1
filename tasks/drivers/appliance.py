"""libguestfs: update copies of a VM's disks with a tree of files, and read the shape of an image.

The guest's file systems are mounted only inside libguestfs's appliance, a small VM that reaches no network. All of it
runs in a child process (`tasks.drivers.appliance_worker`) that can be killed: it ends at a deadline and with us,
and QEMU with it.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks import errors
from tasks.drivers import process, qemu_img
from tasks.drivers.kvm_probe import kvm_works
from tasks.errors import CommandFailed, ConfigError, GbsError, IntegrityError
from tasks.model.image_update import MountedBy
from tasks.model.shape import Shape, shape

OnProgress = Callable[[str, float | None], None]
_FORMATS = ("qcow2", "raw")
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class DiskFile:
    """A disk of an image: the file that holds it, and its format."""

    path: Path
    format: qemu_img.ImageFormat


@dataclass(frozen=True)
class UpdateResult:
    """What an update did; `files_changed` counts all that was made or changed in any attribute, folders too."""

    files_changed: int
    files_deleted: int
    bytes_sent: int
    duration_s: float
    launch_s: float
    warnings: tuple[str, ...] = ()
    """What the updated image lacks, and boots without."""


def update_files(
    disks: Sequence[DiskFile],
    file_systems: Sequence[MountedBy],
    source: Path,
    *,
    image: str = "",
    keep: Sequence[str],
    fake_super: bool = False,
    deadline_s: float,
    on_progress: OnProgress,
) -> UpdateResult:
    """Make the file systems in `disks` (copies or overlays of ours, written in place) hold exactly the tree `source`.

    Owners by number, modes, times, hard links, ACLs, xattrs (capabilities too), holes and deletions included. Files are
    compared by size and modification time to the nanosecond; on vfat by two seconds, and only names, contents and times
    are kept. `keep`: patterns of rsync's --exclude; what they match is neither written nor deleted. A mount point
    that `source` does not have keeps its contents, and so does a btrfs subvolume that is not mounted. `image` is what
    messages call the disks. `fake_super`: the owners, devices and xattrs of `source` are in rsync's xattr.

    On any error the disks are not to be used: throw them away. After success their bytes are on the disk; the caller
    runs `qemu-img check`. Before anything is written: ImageUnfit (it lacks a file system of the facts, or what fstab or
    GRUB need to boot), SourceRefused, RecoveryRefused, ConfigError. Later: IntegrityError (damage), StoreError (the
    night cannot be read). Always: ImageFull.
    """
    called = image or str(disks[0].path)
    for pattern in keep:
        if not pattern or "\0" in pattern:
            raise ConfigError("no pattern of what is kept", repr(pattern), "write it as rsync's --exclude has it")
    if "/" not in (system.mountpoint for system in file_systems):
        raise ConfigError("no root file system", called, "the client's facts must name what is mounted on /")
    request = {
        "do": "update",
        "image": called,
        "file_systems": [dataclasses.asdict(system) for system in file_systems],
        "source": str(source),
        "keep": list(keep),
        "fake_super": fake_super,
    }
    began = time.monotonic()
    answer = work(disks, request, deadline_s, on_progress)
    return UpdateResult(**answer | {"warnings": tuple(answer["warnings"])}, duration_s=time.monotonic() - began)


def shape_of(
    disks: Sequence[DiskFile],
    boot_mode: Literal["bios", "uefi"],
    *,
    deadline_s: float = 900.0,
    on_progress: OnProgress = lambda _text, _part: None,
) -> Shape:
    """The shape of an image's disks, in order, read only; `boot_mode` is what its definition says.

    IntegrityError when no operating system is found in it.
    """
    answer = work(disks, {"do": "shape"}, deadline_s, on_progress)
    if not answer["architecture"]:
        raise IntegrityError(str(disks[0].path), "an operating system", "none that libguestfs knows")
    found = Shape.model_validate({**answer, "boot_mode": boot_mode})
    return shape(found.boot_mode, found.architecture, found.disks, found.volumes)


def appliance_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What libguestfs needs beside `environment`: QEMU directly, TCG where KVM fails; the operator's word wins."""
    wanted = {"LIBGUESTFS_BACKEND": environment.get("LIBGUESTFS_BACKEND") or "direct"}
    if not environment.get("LIBGUESTFS_BACKEND_SETTINGS") and not kvm_works():
        wanted["LIBGUESTFS_BACKEND_SETTINGS"] = "force_tcg"
    return wanted


def work(
    disks: Sequence[DiskFile], request: dict[str, Any], deadline_s: float, on_progress: OnProgress
) -> dict[str, Any]:
    """Run the worker on a request and return its answer; its errors are raised here as what they are."""
    for disk in disks:
        if disk.format not in _FORMATS:
            known = f"use one of {', '.join(_FORMATS)}"
            raise ConfigError(f"unknown image format {disk.format!r}", str(disk.path), known)
    called = f"libguestfs on {disks[0].path}"
    with tempfile.TemporaryDirectory(prefix="gbs-appliance-") as folder:
        request |= {"disks": [(str(disk.path), disk.format) for disk in disks], "folder": folder}
        lines = _Lines(on_progress)
        finished = process.run(
            [sys.executable, "-m", "tasks.drivers.appliance_worker"],
            deadline_s=deadline_s,
            stdin=json.dumps(request).encode(),
            env={
                **appliance_environment(os.environ),
                "PYTHONPATH": os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH")])),
            },
            accept=lambda status: True,
            on_output=lines.take,
            name=called,
        )
    if lines.error is not None:
        raise lines.error
    if finished.status != 0 or lines.answer is None:
        raise CommandFailed(called, finished.status, finished.stderr)
    return lines.answer


class _Lines:
    """The worker's output: JSON lines of progress, then one answer or one error."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress, self._rest = on_progress, b""
        self.answer: dict[str, Any] | None = None
        self.error: GbsError | None = None

    def take(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            match json.loads(line):
                case {"progress": [str(text), part]}:
                    self._on_progress(text, part)
                case {"answer": dict(answer)}:
                    self.answer = answer
                case {"error": str(name), "attributes": list(attributes)}:
                    self.error = getattr(errors, name)(*attributes)
