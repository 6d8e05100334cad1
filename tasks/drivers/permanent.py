"""The permanent store: proven to be the right one before anything is written to it, and asked whether it answers.

Nothing here or in `rsnapshot` touches it but a child that can be killed (`tasks.drivers.answering`): a dead NFS server
hangs whoever does.
"""

import errno
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

from tasks.drivers.answering import PROBE_EVERY_S, NoAnswer, ask, attend
from tasks.errors import StoreNotMounted, StoreSilent
from tasks.model.mountinfo import mount_of, parse_mounts

MARKER = ".gbs-store"
ANSWER_DEADLINE_S = 60
"""An NFS server that restarts is back before."""
LOOK_DEADLINE_S = 10
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class PermanentPlace:
    """Where the permanent store must be, what its marker must say, and for NFSv4 what must be mounted there."""

    path: Path
    store_id: str
    kind: Literal["nfs4", "local"]
    export: str | None = None


def prove(place: PermanentPlace) -> None:
    """Raise StoreNotMounted unless `place` is mounted as declared, writable, and its marker carries the store's id.

    StoreSilent when it does not answer.
    """
    _require_mounted(place)
    path, marker = str(place.path), place.path / MARKER
    try:
        found = at(place, _read, marker)
    except (FileNotFoundError, NotADirectoryError) as exc:
        fix = f"if it is the right place: echo {shlex.quote(place.store_id)} > {shlex.quote(str(marker))}"
        raise StoreNotMounted(path, f"the marker {MARKER} is missing", fix) from exc
    except OSError as exc:
        fix = "mount it again" if exc.errno == errno.ESTALE else "look at the NFS server's export"
        raise StoreNotMounted(path, f"the marker {MARKER} cannot be read: {exc.strerror}", fix) from exc
    if found != place.store_id:
        raise StoreNotMounted(
            path, f"the marker says {found!r}, not {place.store_id!r}", "correct the mount or the store_id"
        )


def _require_mounted(place: PermanentPlace) -> None:
    path = str(place.path)
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"))
    mount = mount_of(path, mounts)
    if place.kind == "nfs4" and (mount.mountpoint, mount.fstype, mount.source) != (path, "nfs4", place.export):
        found = f"{mount.source} ({mount.fstype}) is mounted at {mount.mountpoint}"
        raise StoreNotMounted(path, f"{place.export} is not mounted there; {found}", f"mount {place.export} at {path}")
    if mount.read_only:
        raise StoreNotMounted(path, f"{mount.mountpoint} is mounted read-only", "mount it read-write")


def _read(path: Path) -> str:
    return path.read_text("utf-8", "surrogateescape").strip()


def at(place: PermanentPlace, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a module's function that touches the store returns or raises, however long it takes.

    StoreSilent when the store does not answer meanwhile.
    """
    try:
        return attend(function, lambda: _require_answer(place), *args, **kwargs)
    except NoAnswer as exc:
        raise StoreSilent(str(place.path), str(exc)) from exc


def look(place: PermanentPlace, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `at`, for somebody who waits at a terminal."""
    try:
        return ask(function, LOOK_DEADLINE_S, *args, **kwargs)
    except NoAnswer as exc:
        raise StoreSilent(str(place.path), str(exc)) from exc


def watching(place: PermanentPlace) -> Callable[[], None]:
    """For `process.run`: raises StoreSilent when the store does not answer any more while a program works on it."""
    next_probe = time.monotonic() + PROBE_EVERY_S

    def watch() -> None:
        nonlocal next_probe
        if time.monotonic() >= next_probe:
            _require_answer(place)
            next_probe = time.monotonic() + PROBE_EVERY_S

    return watch


def _require_answer(place: PermanentPlace) -> None:
    try:
        ask(_read, ANSWER_DEADLINE_S, place.path / MARKER)
    except OSError:
        return  # an error is an answer
    except NoAnswer as exc:
        raise StoreSilent(str(place.path), str(exc)) from exc
