"""libguestfs: update a copy of a VM's disk with a tree of files, and read the shape of an image.

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
from tasks.drivers import process
from tasks.drivers.kvm_probe import kvm_works
from tasks.errors import CommandFailed, ConfigError, GbsError, IntegrityError
from tasks.model.shape import Shape, shape

OnProgress = Callable[[str, float | None], None]
_FORMATS = ("qcow2", "raw")
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class MountedBy:
    """A file system of the client by its facts."""

    mountpoint: str
    uuid: str
    fstype: str


@dataclass(frozen=True)
class UpdateResult:
    """What an update did; `files_changed` counts all that was made or changed in any attribute, folders too."""

    files_changed: int
    files_deleted: int
    bytes_sent: int
    duration_s: float
    launch_s: float


def update_files(
    image: Path,
    image_format: str,
    file_systems: Sequence[MountedBy],
    source: Path,
    *,
    keep: Sequence[str],
    fake_super: bool = False,
    deadline_s: float,
    on_progress: OnProgress,
) -> UpdateResult:
    """Make the file systems in `image` (a copy or overlay of ours, written in place) hold exactly the tree `source`.

    Owners by number, modes, times, hard links, ACLs, xattrs (capabilities too), holes and deletions included. Files are
    compared by size and modification time to the nanosecond. `keep`: rsync patterns that begin with "/"; what they
    match is neither written nor deleted. A mount point that `source` does not have keeps its contents, too.
    `fake_super`: the owners, devices and xattrs of `source` are in rsync's xattr.

    On any error the image is not to be used: throw the copy away. After success its bytes are on the disk; the caller
    runs `qemu-img check`. Raises IntegrityError (a UUID that is not in the image; nothing was written), SourceRefused
    (`source` has nothing for a file system that is not empty), ConfigError, CommandFailed, CommandTimedOut.
    """
    for pattern in keep:
        if not pattern.startswith("/") or "\0" in pattern:
            raise ConfigError("a kept path must begin with /", repr(pattern), "write it as the client sees it")
    if "/" not in (system.mountpoint for system in file_systems):
        raise ConfigError("no root file system", str(image), "the client's facts must name what is mounted on /")
    request = {
        "do": "update",
        "file_systems": [dataclasses.asdict(system) for system in file_systems],
        "source": str(source),
        "keep": list(keep),
        "fake_super": fake_super,
    }
    started = time.monotonic()
    answer = work([image], image_format, request, deadline_s, on_progress)
    return UpdateResult(**answer, duration_s=time.monotonic() - started)


def shape_of(
    images: Sequence[Path],
    image_format: str,
    boot_mode: Literal["bios", "uefi"],
    *,
    deadline_s: float = 900.0,
    on_progress: OnProgress = lambda _text, _part: None,
) -> Shape:
    """The shape of an image's disks, in order, read only; `boot_mode` is what its definition says.

    IntegrityError when no operating system is found in it.
    """
    answer = work(images, image_format, {"do": "shape"}, deadline_s, on_progress)
    if not answer["architecture"]:
        raise IntegrityError(str(images[0]), "an operating system", "none that libguestfs knows")
    found = Shape.model_validate({**answer, "boot_mode": boot_mode})
    return shape(found.boot_mode, found.architecture, found.disks, found.volumes)


def appliance_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What libguestfs needs beside `environment`: QEMU directly, TCG where KVM fails; the operator's word wins."""
    wanted = {"LIBGUESTFS_BACKEND": environment.get("LIBGUESTFS_BACKEND") or "direct"}
    if not environment.get("LIBGUESTFS_BACKEND_SETTINGS") and not kvm_works():
        wanted["LIBGUESTFS_BACKEND_SETTINGS"] = "force_tcg"
    return wanted


def work(
    images: Sequence[Path], image_format: str, request: dict[str, Any], deadline_s: float, on_progress: OnProgress
) -> dict[str, Any]:
    """Run the worker on a request and return its answer; its errors are raised here as what they are."""
    if image_format not in _FORMATS:
        raise ConfigError(f"unknown image format {image_format!r}", str(images[0]), f"use one of {', '.join(_FORMATS)}")
    called = f"libguestfs on {images[0]}"
    with tempfile.TemporaryDirectory(prefix="gbs-appliance-") as folder:
        request |= {"images": [str(image) for image in images], "format": image_format, "folder": folder}
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
