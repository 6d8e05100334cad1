"""Prove that the permanent store is the right one before anything is written to it."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.drivers.answering import NoAnswer, ask
from tasks.errors import StoreNotMounted
from tasks.model.mountinfo import mount_of, parse_mounts

MARKER = ".gbs-store"
ANSWER_DEADLINE_S = 20


@dataclass(frozen=True)
class PermanentPlace:
    """Where the permanent store must be, what its marker must say, and for NFSv4 what must be mounted there."""

    path: Path
    store_id: str
    kind: Literal["nfs4", "local"]
    export: str | None = None


def prove(place: PermanentPlace) -> None:
    """Raise StoreNotMounted unless `place` is mounted as declared, writable, and its marker carries the store's id.

    The marker is read by a child with a deadline, because a dead NFS server hangs whoever touches its mount.
    """
    path = str(place.path)
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"))
    mount = mount_of(path, mounts)
    if place.kind == "nfs4" and (mount.mountpoint, mount.fstype, mount.source) != (path, "nfs4", place.export):
        found = f"{mount.source} ({mount.fstype}) is mounted at {mount.mountpoint}"
        raise StoreNotMounted(path, f"{place.export} is not mounted there; {found}", f"mount {place.export} at {path}")
    if mount.read_only:
        raise StoreNotMounted(path, f"{mount.mountpoint} is mounted read-only", "mount it read-write")
    marker = place.path / MARKER
    try:
        found = ask(_read, ANSWER_DEADLINE_S, marker)
    except NoAnswer as exc:
        raise StoreNotMounted(path, str(exc), "look at the NFS server") from exc
    except (FileNotFoundError, NotADirectoryError) as exc:
        fix = f"if it is the right place: echo {shlex.quote(place.store_id)} > {shlex.quote(str(marker))}"
        raise StoreNotMounted(path, f"the marker {MARKER} is missing", fix) from exc
    except OSError as exc:
        raise StoreNotMounted(path, f"the marker {MARKER}: {exc.strerror}", "look at the NFS server") from exc
    if found != place.store_id:
        raise StoreNotMounted(
            path, f"the marker says {found!r}, not {place.store_id!r}", "correct the mount or the store_id"
        )


def _read(path: Path) -> str:
    return path.read_text("utf-8", "surrogateescape").strip()
