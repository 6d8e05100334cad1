"""Files out of an image, by libguestfs: the request `files` of `tasks.drivers.appliance_worker`, and what asks for it.

The guest's file systems are mounted read-only where the guest has them. rsync in the appliance sends them to a daemon
in a folder of ours, over the one connection that the closed network has: so nothing of the guest is ever a path here.
"""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.drivers import appliance, appliance_channel
from tasks.drivers.appliance import DiskFile, OnProgress
from tasks.drivers.appliance_session import Reporter, launched
from tasks.drivers.process import no_room
from tasks.drivers.space import require_space
from tasks.errors import CommandFailed, IntegrityError, NothingToRecover, RecoveryRefused, StoreFilled
from tasks.model.file_history import is_hidden

SYSROOT = "/sysroot"
_SEND = f"""cd /tmp
rsync -aHAXS --numeric-ids --relative --recursive --from0 --files-from=/tmp/gbs-paths --stats --no-human-readable \
 {SYSROOT}/ {appliance_channel.SOURCE} >{appliance_channel.OUTPUT_PORT} 2>gbs-errors
echo $?
tail -c 3000 gbs-errors
"""


@dataclass(frozen=True)
class CopiedOut:
    """What came out of an image: the file systems that could not be mounted are said."""

    unmounted: tuple[str, ...]


def copy_out(
    disks: Sequence[DiskFile],
    paths: Sequence[str],
    destination: Path,
    *,
    fake_super: bool = False,
    reserve_bytes: int = 0,
    deadline_s: float,
    on_progress: OnProgress,
) -> CopiedOut:
    """Copy paths (without slashes around them) of the guest in an image into a folder of ours, with their full names.

    Owners, ACLs, xattrs, hard links and holes are kept, with `fake_super` in rsync's xattr. The image is only read.
    Raises NothingToRecover for a path that is not there, RecoveryRefused for one in a file system that cannot be
    mounted, IntegrityError for an image without one that can be, StoreFull without room for the files and
    `reserve_bytes` beside them, CommandFailed.
    """
    request = {
        "do": "files",
        "paths": list(paths),
        "destination": str(destination),
        "fake_super": fake_super,
        "reserve_bytes": reserve_bytes,
    }
    answer = appliance.work(disks, request, deadline_s, on_progress)
    return CopiedOut(tuple(answer["unmounted"]))


def send(request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Answer the request, in the worker."""
    image = request["disks"][0][0]
    channel = appliance_channel.Channel(Path(request["folder"]))
    destination = Path(request["destination"])
    parameters = channel.prepare(destination, fake_super=request["fake_super"], writable=True)
    with launched(request, parameters, readonly=True) as handle:
        reporter.now("mounting the image's file systems")
        unmounted = mount_all(handle, image)
        for path in request["paths"]:
            _require_mounted(image, f"/{path}", unmounted)
            _require(handle, image, f"/{path}")
        needed_kib = sum(handle.du(f"/{path}") for path in request["paths"])
        require_space(destination, needed_kib << 10, request["reserve_bytes"])
        paths = channel.folder / "paths"
        paths.write_bytes(b"".join(os.fsencode(path or ".") + b"\0" for path in request["paths"]))
        handle.debug_upload(str(paths), "/tmp/gbs-paths", 0o600)  # noqa: S108 - the appliance's /tmp
        handle.debug("sh", [appliance_channel.PREPARE])
        reporter.now("copying files")
        status, *said = handle.debug("sh", [_SEND]).split("\n")
        if status != "0":
            words = "\n".join([*said, channel.log_tail()]).strip()
            if full := no_room(words):
                raise StoreFilled(str(destination), full)
            raise CommandFailed(f"rsync out of {image}", int(status), words)
    return {"unmounted": [f"{place}: {reason}" for place, reason in unmounted.items()]}


def mount_all(handle: Any, image: str) -> dict[str, str]:
    """Mount what the guest's own fstab says, as libguestfs reads it; a lone file system without a system is `/`.

    The places of those that could not be mounted, and why; IntegrityError when there is nothing to mount on `/`.
    """
    roots = handle.inspect_os()
    if roots:
        places = handle.inspect_get_mountpoints(roots[0])
    else:
        found = [device for device, kind in handle.list_filesystems().items() if kind not in ("swap", "unknown", "")]
        if len(found) != 1:
            wanted = "an operating system, or one file system"
            raise IntegrityError(image, wanted, f"{len(found)} file systems: {', '.join(found) or 'none'}")
        places = {"/": found[0]}
    unmounted = {}
    for place in sorted(places, key=lambda place: place.rstrip("/").count("/")):
        try:
            handle.mount_ro(places[place], place)
        except RuntimeError as exc:
            if place == "/":
                raise
            unmounted[place] = str(exc)
    return unmounted


def _require_mounted(image: str, path: str, unmounted: dict[str, str]) -> None:
    """What lies in the folder that a file system would be mounted on is not what the guest has there."""
    for place, reason in unmounted.items():
        if is_hidden(path, [place]):
            why = f"the guest's file system at {place} could not be mounted: {reason}"
            raise RecoveryRefused(f"{path} from image {image}", why, "take another image (--from)")


def _require(handle: Any, image: str, path: str) -> None:
    """NothingToRecover unless the path is there, and no link leads to it: it could lead into the appliance."""
    above = os.path.dirname(path)
    what = f"{path} from image {image}"
    if path == "/":
        return
    if not handle.exists(above):
        raise NothingToRecover(what, "there is no such file")
    if (real := handle.realpath(above)) != above:
        raise NothingToRecover(what, f"{above} is {real}: ask for the path there")
    words = f"[ -e {shlex.quote(SYSROOT + path)} ] || [ -L {shlex.quote(SYSROOT + path)} ] && echo there || echo none"
    if handle.debug("sh", [words]).strip() != "there":
        raise NothingToRecover(what, "there is no such file")
