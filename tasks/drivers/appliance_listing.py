"""The regular files in an image, by libguestfs: the request `listing` of `tasks.drivers.appliance_worker`.

Names and sizes come out first; only of the files that are wanted is the content read, in the appliance.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.drivers import appliance, appliance_channel
from tasks.drivers.appliance import DiskFile, OnProgress
from tasks.drivers.appliance_files import SYSROOT, mount_all
from tasks.drivers.appliance_session import Handle, Reporter, launched
from tasks.drivers.listings import is_below, shown
from tasks.errors import CommandFailed
from tasks.model.file_history import Found
from tasks.model.name_pattern import NamePattern

_NAMES, _WANTED, _SUMS = "gbs-names", "gbs-wanted", "gbs-sums"
_LIST = f"cd {SYSROOT} && find . -type f -printf '%s %P\\0' >/tmp/{_NAMES}"
_HASH = f"cd {SYSROOT} && xargs -0 -r sha256sum -z -- </tmp/{_WANTED} >/tmp/{_SUMS}"


@dataclass(frozen=True)
class ImageFiles:
    """Regular files of an image: path from `/` → what it holds."""

    files: dict[str, Found]
    unmounted: dict[str, str]
    """Where a file system could not be mounted, so that nothing is known of what is below, and why."""


def files_in(
    disks: Sequence[DiskFile],
    *,
    below: str = "/",
    pattern: str | None = None,
    deadline_s: float,
    on_progress: OnProgress,
) -> ImageFiles:
    """The regular files at and below a path of the guest, all or those that a `NamePattern` means, with their sha256.

    The image is only read, and no link of the guest's is followed. Raises IntegrityError for an image without a file
    system that can be mounted, CommandFailed for one that cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="gbs-listing-") as folder:
        request = {"do": "listing", "below": below, "pattern": pattern, "destination": folder}
        answer = appliance.work(disks, request, deadline_s, on_progress)
        sizes = dict(_named(Path(folder, _NAMES).read_bytes()))
        sums = Path(folder, _SUMS).read_bytes().split(b"\0")[:-1]
    found = {}
    for line in sums:
        sha256, _, path = line.partition(b"  ")
        found[shown(path)] = Found(sha256.decode("ascii"), sizes[path])
    return ImageFiles(found, answer["unmounted"])


def list_files(request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Answer the request, in the worker."""
    destination = Path(request["destination"])
    channel = appliance_channel.Channel(Path(request["folder"]))
    parameters = channel.prepare(destination, fake_super=False, writable=True)
    with launched(request, parameters, readonly=True) as handle:
        reporter.now("mounting the image's file systems")
        unmounted = mount_all(handle, request["disks"][0][0])
        handle.debug("sh", [appliance_channel.PREPARE])
        reporter.now("listing files")
        _run(handle, _LIST)
        _fetch(handle, _NAMES)
        wanted = channel.folder / _WANTED
        wanted.write_bytes(b"".join(path + b"\0" for path in _wanted(request, destination / _NAMES)))
        reporter.now("reading files")
        handle.debug_upload(str(wanted), f"/tmp/{_WANTED}", 0o600)  # noqa: S108 - the appliance's /tmp
        _run(handle, _HASH)
        _fetch(handle, _SUMS)
    return {"unmounted": unmounted}


def _wanted(request: dict[str, Any], names: Path) -> Iterator[bytes]:
    pattern = None if request["pattern"] is None else NamePattern(request["pattern"])
    below = os.fsencode(request["below"].strip("/"))
    for path, _size in _named(names.read_bytes()):
        if is_below(path, below) and (pattern is None or pattern.matches(path)):
            yield path


def _named(content: bytes) -> Iterable[tuple[bytes, int]]:
    for row in content.split(b"\0")[:-1]:
        size, _, path = row.partition(b" ")
        yield path, int(size)


def _fetch(handle: Handle, name: str) -> None:
    """Bring a file of the appliance's to the request's destination."""
    _run(handle, f"rsync /tmp/{name} {appliance_channel.SOURCE}")


def _run(handle: Handle, script: str) -> None:
    """Run a script in the appliance; CommandFailed with what it said."""
    said, _, status = handle.debug("sh", [f"({script}) 2>&1; echo $?"]).rstrip("\n").rpartition("\n")
    if status != "0":
        raise CommandFailed(script.split(" >", maxsplit=1)[0], int(status), said[-3000:])
