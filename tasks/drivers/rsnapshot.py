"""rsnapshot 1.4: one root per client, `rsnapshot sync` into `.sync`; rotation is `tasks.drivers.restore_points`'.

With link_dest the new tree is hard-linked to the newest point by rsync and `.sync` itself becomes `daily.0`. A `.sync`
that an interrupted run left is never written into: its files share their inodes with older points, and rsync would
change owners and modes of those in place.
"""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

from tasks.drivers import process, store_clock
from tasks.drivers.permanent import PermanentPlace, at, watching
from tasks.drivers.renewal import FULL_EVERY, Renewal, begin
from tasks.drivers.restore_points import hide, mend, remains
from tasks.drivers.rsync import EXACT_TIMES
from tasks.drivers.space import require_for_point
from tasks.drivers.store import flush, read_model, remove, verify_night, write_model
from tasks.errors import (
    CommandFailed,
    CommandTimedOut,
    GbsError,
    IntegrityError,
    StoreError,
    StoreFilled,
    StoreFull,
    StoreNotMounted,
    StoreSilent,
    WriteLost,
)
from tasks.model.manifest import MANIFEST, NightManifest
from tasks.model.names import one_line
from tasks.model.retention import SYNC, Retain

log = logging.getLogger(__name__)
EVERYTHING = "-aHAXS"
NEWEST = "daily.0"
_TOLD = 3
_handles: dict[str, int] = {}
"""Of the child that makes the calls."""


def render_config(source: Path, root: Path, lock: Path, retain: Sequence[Retain], options: Sequence[str]) -> str:
    """The configuration for one client; fields are separated by tabs, as rsnapshot requires.

    `options` are those of `rsync_options`.
    """
    long_options = ["--delete", "--delete-excluded", *options]
    rows = [
        ("config_version", "1.2"),
        ("snapshot_root", f"{root}/"),
        ("no_create_root", "1"),
        ("cmd_rsync", shutil.which("rsync") or "rsync"),
        ("cmd_cp", shutil.which("cp") or "cp"),
        ("cmd_rm", shutil.which("rm") or "rm"),
        *(("retain", row.interval, str(row.count)) for row in retain),
        # What rsync says is shown from 3 on, on standard output.
        ("verbose", "3"),
        ("lockfile", str(lock)),
        ("sync_first", "1"),
        ("link_dest", "1"),
        # Should somebody call rsnapshot's own rotation: as here, a point is renamed before it is removed.
        ("use_lazy_deletes", "1"),
        ("rsync_short_args", EVERYTHING),
        ("rsync_long_args", " ".join(long_options)),
        ("exclude", f"/{MANIFEST}"),
        ("backup", f"{source}/", "./"),
    ]
    return "".join("\t".join(row) + "\n" for row in rows)


def rsync_options(*, fake_super: bool = False, whole_seconds: bool = False) -> tuple[str, ...]:
    """How rsync copies a night to the permanent store; as in `tasks.drivers.rsync.Wanted`."""
    exact = () if whole_seconds else (EXACT_TIMES,)
    return ("--numeric-ids", *exact, *(("--fake-super",) if fake_super else ()))


def sync(
    place: PermanentPlace,
    config: Path,
    source: Path,
    root: Path,
    deadline_s: float,
    renewal: Renewal | None = None,
) -> None:
    """Copy `source` to `<root>/.sync` and stamp it with the source's manifest once everything else is there.

    By `renewal` if that will do, else by rsnapshot, which looks at every file. `root` lies in the permanent store
    `place` and is made when it is not there. Raises StoreSilent when that does not answer, StoreFilled, CommandFailed
    of rsnapshot or rsync, IntegrityError when what arrived is not what was to be copied.
    """
    handle = at(place, _make_ready, root)
    try:
        for folder in at(place, remains, root):
            remove(folder, watching(place))  # first: what is to be copied may need the room
        at(place, require_for_point, source, root)
        if renewal is None or not _renewed(place, source, root, deadline_s, renewal):
            at(place, Path.mkdir, root / SYNC, 0o700)  # rsnapshot would not say why it cannot
            argv = ["rsnapshot", "-c", str(config), "sync"]
            _run(argv, f"rsnapshot sync of {root.name}", root, deadline_s, watching(place))
            if renewal is not None:
                renewal.counted.write_text("0\n")  # rsync has compared all
        manifest = read_model(source / MANIFEST, NightManifest)
        if manifest is None:
            raise IntegrityError(str(source), "a night with a manifest", "none")
        at(place, _stamp, handle, root, manifest)
    finally:
        with suppress(StoreSilent):  # the child that had it is gone
            at(place, _let_go, handle)


def _renewed(place: PermanentPlace, source: Path, root: Path, deadline_s: float, renewal: Renewal) -> bool:
    """Whether `.sync` could be made of the newest point and what changed; what hinders only that is no failure."""
    try:
        if _renew(place, source, root, deadline_s, renewal):
            return True
    except (StoreSilent, StoreFull, StoreNotMounted, CommandTimedOut):
        raise
    except (GbsError, RecursionError) as exc:
        log.warning("%s cannot be made of %s: %s; all is compared", root / SYNC, NEWEST, exc)
    at(place, _put_away, root)
    return False


def _renew(place: PermanentPlace, source: Path, root: Path, deadline_s: float, renewal: Renewal) -> bool:
    now = datetime.now(UTC)
    doubt = at(place, store_clock.doubt, place.path, now)
    if not at(place, begin, root, source, renewal, NEWEST, now.date() if doubt is None else date.min):
        return False
    argv = ["rsync", EVERYTHING, *renewal.options]
    places = [f"{source}/", f"{root / SYNC}/"]
    listed = ["--from0", f"--files-from={renewal.listed}", f"--link-dest={root / NEWEST}"]
    _run([*argv, *listed, *places], f"rsync of {root.name}", root, deadline_s, watching(place))
    renewal.listed.unlink()
    if (number := renewal.count) >= FULL_EVERY:
        compare = ["--dry-run", "--itemize-changes", "--delete", f"--exclude=/{MANIFEST}"]
        left = _run([*argv, *compare, *places], f"compare {root.name}", root, deadline_s, watching(place))
        if left:
            raise IntegrityError(str(root / SYNC), "the overnight copy", one_line(left.splitlines()[0]))
        number = 0
    renewal.counted.write_text(f"{number}\n")
    return True


def _make_ready(root: Path) -> str:
    """Make the root, close gaps, put an old `.sync` out of sight; the root is opened, and called as is returned."""
    root.mkdir(exist_ok=True, mode=0o700)
    mend(root)
    _put_away(root)
    handle = os.urandom(8).hex()
    _handles[handle] = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    return handle


def _put_away(root: Path) -> None:
    if (root / SYNC).exists():
        hide(root / SYNC)


def _let_go(handle: str) -> None:
    if handle in _handles:
        os.close(_handles.pop(handle))


def _stamp(handle: str, root: Path, manifest: NightManifest) -> None:
    """Stamp the sync when all of it is on disk: what lost its files in a power cut must not look like a point.

    The handle was opened before anything was written, or a write error that another flush has seen would not be told
    again (syncfs(2)); rsync does not look for errors that come when it closes a file, as those of NFS do. The error may
    be an earlier one that nobody has seen: the next try will tell.
    """
    if handle not in _handles:
        raise WriteLost(str(root), "another call that did not return took the handle of its flush with it")
    try:
        flush(_handles[handle])
    except OSError as exc:
        status = os.statvfs(root)
        if exc.errno in (errno.ENOSPC, errno.EDQUOT) and status.f_bavail * 100 < status.f_blocks:
            raise  # it is full now, too: writing all of it again would not help
        raise WriteLost(str(root), exc.strerror) from exc
    _require_still_there(_handles[handle], root)
    verify_night(root / SYNC, manifest)
    write_model(root / SYNC / MANIFEST, manifest)


def _require_still_there(handle: int, root: Path) -> None:
    """Raise StoreError unless the folder that was opened is what lies there still, and not in another store."""
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(handle), os.stat(root)):
            return
    raise StoreError(str(root), "it was unmounted, or another was mounted, while it was written to; no point was made")


def _run(argv: Sequence[str], name: str, root: Path, deadline_s: float, watch: Callable[[], None]) -> str:
    """What the program said."""
    finished = process.run(argv, deadline_s=deadline_s, accept=lambda status: True, watch=watch, name=name)
    if finished.status == 0:
        return finished.text
    said = f"{finished.stderr}\n{finished.text[-process.TAIL_BYTES :]}"
    if full := process.no_room(said):
        raise StoreFilled(str(root), full)
    raise CommandFailed(name, finished.status, _gist(said))


def _gist(said: str) -> str:
    """The first lines that say what is wrong, rsync's own if there are any; rsnapshot tells all that it did."""
    lines = said.strip().splitlines()
    words = ("rsync: ", "ERROR: ", "WARNING: ")
    telling = (*([line for line in lines if line.startswith(word)] for word in words), lines)
    return one_line("; ".join(next(filter(None, telling), [])[:_TOLD]))
