"""The permanent store: proven to be the right one before anything is written to it, and asked whether it answers.

Nothing here or in `rsnapshot` touches it but a child that can be killed (`tasks.drivers.answering`): a dead NFS server
hangs whoever does.
"""

import errno
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from mmap import PAGESIZE, mmap
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

from tasks.drivers import process
from tasks.drivers.answering import PROBE_EVERY_S, NoAnswer, ask, attend
from tasks.errors import CommandFailed, CommandTimedOut, StoreError, StoreFilled, StoreNotMounted, StoreSilent
from tasks.model.inventory import PermanentSection
from tasks.model.mountinfo import SOFT, Mount, mount_of, parse_mounts

MARKER = ".gbs-store"
ANSWER_DEADLINE_S = 60
"""An NFS server that restarts is back before."""
LOOK_DEADLINE_S = 10
_REFUSED = (
    ": is root squashed by the export, or is it not exported to this machine? It needs no_root_squash (exports(5))"
)
_HINTS = {
    errno.EACCES: _REFUSED,
    errno.EPERM: _REFUSED,
    errno.EROFS: ": mount or export it read-write",
    errno.ESTALE: ": the export was made anew, mount it again",
}
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class PermanentPlace:
    """Where the permanent store must be, what its marker must say, and for NFSv4 what must be mounted there, and how.

    Without `mount_options` it is not ours to mount.
    """

    path: Path
    store_id: str
    kind: Literal["nfs4", "local"]
    export: str | None = None
    mount_options: str | None = None


def place_of(declared: PermanentSection) -> PermanentPlace:
    """The permanent store of an inventory, for those who do without Prefect's blocks."""
    where = Path(declared.path)
    return PermanentPlace(where, declared.store_id, declared.kind, declared.export, declared.mount_options)


def prove(place: PermanentPlace, deadline_s: float | None = None) -> None:
    """Raise StoreNotMounted unless `place` is mounted as declared, writable, and its marker carries the store's id.

    Where nothing is mounted, it is mounted if that is ours to do. StoreSilent when it does not answer within
    `deadline_s` (ANSWER_DEADLINE_S).
    """
    _require_mounted(place)
    path, marker = str(place.path), place.path / MARKER
    found = _called(place, deadline_s or ANSWER_DEADLINE_S, partial(_read, marker))
    if found is None:
        fix = f"if it is the right place: echo {shlex.quote(place.store_id)} > {shlex.quote(str(marker))}"
        raise StoreNotMounted(path, f"the marker {MARKER} is missing", fix)
    if found != place.store_id:
        raise StoreNotMounted(
            path, f"the marker says {found!r}, not {place.store_id!r}", "correct the mount or the store_id"
        )


def _require_mounted(place: PermanentPlace) -> None:
    path, mount = str(place.path), _mount_at(place)
    if place.kind == "nfs4" and place.mount_options is not None and mount.mountpoint != path:
        _mount(place, place.mount_options)
        mount = _mount_at(place)
    if place.kind == "nfs4" and (mount.mountpoint, mount.fstype, mount.source) != (path, "nfs4", place.export):
        found = f"{mount.source} ({mount.fstype}) is mounted at {mount.mountpoint}"
        raise StoreNotMounted(path, f"{place.export} is not mounted there; {found}", f"mount {place.export} at {path}")
    if mount.read_only:
        raise StoreNotMounted(path, f"{mount.mountpoint} is mounted read-only", "mount it read-write")
    if place.kind == "nfs4" and SOFT.intersection(mount.options):
        raise StoreNotMounted(path, "it is a soft mount, which may lose writes without a word", "mount it hard")


def _mount_at(place: PermanentPlace) -> Mount:
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"))
    return mount_of(str(place.path), mounts)


def _mount(place: PermanentPlace, options: str) -> None:
    argv = ["mount", "-t", "nfs4", "-o", options, "--", str(place.export), str(place.path)]
    try:
        process.run(argv, deadline_s=ANSWER_DEADLINE_S, name=f"mount of {place.export}")
    except CommandTimedOut as exc:
        raise StoreSilent(str(place.path), str(exc)) from exc
    except CommandFailed as exc:
        raise StoreNotMounted(str(place.path), str(exc), f"look at the export {place.export} and at {options}") from exc


def _read(marker: Path) -> str | None:
    """What it says; None when it is not there.

    With a delegation of its own NFS reads a file without asking the server (RFC 8881, 10.4), also when that has another
    disk in its place by now; statfs(2) always asks, and so does a read past the page cache.
    """
    try:
        os.statvfs(marker.parent)
        return _past_the_cache(marker).decode("utf-8", "surrogateescape").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _past_the_cache(path: Path) -> bytes:
    """The first page of a file; from the cache where the file system has no other way."""
    with mmap(-1, PAGESIZE) as page:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            try:
                return page[: os.preadv(handle, [page], 0)]
            finally:
                os.close(handle)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
    return path.read_bytes()


def at(place: PermanentPlace, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a module's function that touches the store returns or raises, however long it takes.

    StoreSilent when the store does not answer meanwhile; its OSError becomes StoreFilled or StoreError.
    """
    return _called(place, ANSWER_DEADLINE_S, partial(function, *args, **kwargs))


def reading(place: PermanentPlace, folder: Path, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that reads what lies in `folder`: as `at` where that is in the store, else here."""
    if folder.is_relative_to(place.path):
        return at(place, function, *args, **kwargs)
    return partial(function, *args, **kwargs)()


def look(place: PermanentPlace, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `at`, for somebody who waits at a terminal: a silent store is given up sooner."""
    return _called(place, LOOK_DEADLINE_S, partial(function, *args, **kwargs))


def _called(place: PermanentPlace, deadline_s: float, call: Callable[[], T]) -> T:
    try:
        return attend(call, lambda: _require_answer(place, deadline_s))
    except NoAnswer as exc:
        raise StoreSilent(str(place.path), str(exc)) from exc
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFilled(str(place.path), str(exc.strerror)) from exc
        raise StoreError(str(exc.filename or place.path), f"{exc.strerror}{_HINTS.get(exc.errno or 0, '')}") from exc


def watching(place: PermanentPlace) -> Callable[[], None]:
    """For `process.run`: raises StoreSilent when the store does not answer any more while a program works on it."""
    next_probe = time.monotonic() + PROBE_EVERY_S

    def watch() -> None:
        nonlocal next_probe
        if time.monotonic() >= next_probe:
            _require_answer(place, ANSWER_DEADLINE_S)
            next_probe = time.monotonic() + PROBE_EVERY_S

    return watch


def _require_answer(place: PermanentPlace, deadline_s: float) -> None:
    try:
        ask(_read, deadline_s, place.path / MARKER)
    except OSError:
        return  # an error is an answer
    except NoAnswer as exc:
        raise StoreSilent(str(place.path), str(exc)) from exc
