"""rsnapshot 1.4: one root per client, `rsnapshot sync` into `.sync`; the renames of a rotation are ours.

With link_dest the new tree is hard-linked to the newest point by rsync and `.sync` itself becomes `daily.0`. A `.sync`
that an interrupted run left is never written into: its files share their inodes with older points, and rsync would
change owners and modes of those in place.
"""

import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from tasks.drivers import process
from tasks.drivers.permanent import PermanentPlace, at, watching
from tasks.drivers.rsync import EXACT_TIMES
from tasks.drivers.store import flush, read_model, remove, sync_folder, verify_night, write_model
from tasks.errors import CommandFailed, IntegrityError, StoreFull, StoreSilent, WriteLost
from tasks.model.manifest import MANIFEST, NightManifest
from tasks.model.retention import KEPT, SYNC, Move, Pin, Pins, Point, Reading, Readings, Retain, Rules, plan

PINS, READINGS = ".pins.json", ".readings.json"
WHOLE = 100
_handles: dict[str, int] = {}
"""Of the child that makes the calls."""
_INTERVALS = ("daily", "weekly", "monthly")
_DOOMED, _TRASH = ".delete-", ".trash-"
"""Before the name of what may be removed at once, and of what was given up, with the day from which it may be."""


def render_config(
    source: Path,
    root: Path,
    lock: Path,
    retain: Sequence[Retain],
    *,
    fake_super: bool = False,
    whole_seconds: bool = False,
) -> str:
    """The configuration for one client; fields are separated by tabs, as rsnapshot requires.

    The last two are as in `tasks.drivers.rsync.Wanted`.
    """
    options = ["--numeric-ids", "--delete", "--delete-excluded"]
    options += [] if whole_seconds else [EXACT_TIMES]
    options += ["--fake-super"] if fake_super else []
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
        ("rsync_short_args", "-aHAXS"),
        ("rsync_long_args", " ".join(options)),
        ("exclude", f"/{MANIFEST}"),
        ("backup", f"{source}/", "./"),
    ]
    return "".join("\t".join(row) + "\n" for row in rows)


def points(root: Path) -> dict[str, NightManifest | None]:
    """The restore points below a client's root by name, newest intervals first; None where there is no manifest."""
    found = {}
    for folder in root.iterdir() if root.is_dir() else ():
        interval, _, number = folder.name.partition(".")
        if (interval in _INTERVALS and number.isdecimal()) or folder.name.startswith(KEPT):
            found[folder.name] = read_model(folder / MANIFEST, NightManifest)
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def pins(root: Path) -> Pins:
    """The nights of a client that are pinned."""
    return read_model(root / PINS, Pins) or Pins()


def pin(root: Path, wanted: Pin | None, night: str) -> None:
    """Pin a night anew, or no more."""
    others = [one for one in pins(root).pins if one.night != night]
    write_model(root / PINS, Pins(pins=(*others, *([wanted] if wanted else []))))


def retained(root: Path) -> list[Point]:
    """The restore points as retention looks at them."""
    pinned = {one.night: one for one in pins(root).pins}
    read = readings(root).nights
    return [
        Point(name, found.id, found.ended, pinned.get(found.id), found.id in read and bool(read[found.id].damaged))
        if found
        else Point(name)
        for name, found in points(root).items()
    ]


def readings(root: Path) -> Readings:
    """The last reading of each of a client's nights, as `note` has it."""
    return read_model(root / READINGS, Readings) or Readings()


def note(root: Path, nights: Mapping[str, Reading]) -> None:
    """Note readings; those of nights that are gone are forgotten. A sample does not make a night whole again."""
    known = dict(readings(root).nights)
    for night, reading in nights.items():
        before = known.get(night)
        still = before.damaged if before and reading.percent < WHOLE else ()
        known[night] = reading.model_copy(update={"damaged": tuple(dict.fromkeys((*still, *reading.damaged)))})
    there = {found.id for found in points(root).values() if found}
    write_model(root / READINGS, Readings(nights={night: one for night, one in known.items() if night in there}))


def points_of(roots: Mapping[str, Path]) -> dict[str, dict[str, NightManifest | None]]:
    """The restore points below several clients' roots, by client."""
    return {client: points(root) for client, root in roots.items()}


def _order(name: str) -> tuple[int, int | str]:
    interval, _, number = name.partition(".")
    return (_INTERVALS.index(interval), int(number)) if interval in _INTERVALS else (len(_INTERVALS), number)


def sync(place: PermanentPlace, config: Path, source: Path, root: Path, deadline_s: float) -> None:
    """Copy `source` to `<root>/.sync` and stamp it with the source's manifest once everything else is there.

    `root` lies in the permanent store `place` and is made when it is not there. Raises StoreSilent when that does not
    answer, StoreFull, CommandFailed of rsnapshot, IntegrityError when what arrived is not what was to be copied.
    """
    handle = at(place, _make_ready, root)
    try:
        for folder in at(place, _left, root):
            remove(folder, watching(place))  # first: what is to be copied may need the room
        _run(config, "sync", root, deadline_s, watching(place))
        manifest = read_model(source / MANIFEST, NightManifest)
        if manifest is None:
            raise IntegrityError(str(source), "a night with a manifest", "none")
        at(place, _stamp, handle, root, manifest)
    finally:
        with suppress(StoreSilent):  # the child that had it is gone
            at(place, _let_go, handle)


def rotate(place: PermanentPlace, root: Path, rules: Rules, trash_days: int) -> list[Move]:
    """Rotate as far as the fresh sync asks for; [] when its content is no newer than the newest point.

    What is given up is out of sight, and removed by `tidy` once `trash_days` have passed. Raises IntegrityError when
    there is no stamped sync, when its stamp did not arrive in the newest point, or when the newest point is of a later
    time: nothing would rotate until then.
    """
    return at(place, _rotate, root, rules, datetime.now(UTC), trash_days)


def tidy(place: PermanentPlace, root: Path) -> int:
    """Remove what was given up and is due, and what failed runs left; how many trees."""
    doomed = at(place, _doomed, root, datetime.now(UTC).date())
    for folder in doomed:
        remove(folder, watching(place))
    return len(doomed)


def _make_ready(root: Path) -> str:
    """Make the root, close gaps, put an old `.sync` out of sight; the root is opened, and called as is returned."""
    root.mkdir(exist_ok=True, mode=0o700)
    _mend(root)
    if (root / SYNC).exists():
        _put_away(root / SYNC, _DOOMED)
    handle = os.urandom(8).hex()
    _handles[handle] = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    return handle


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
    verify_night(root / SYNC, manifest)
    write_model(root / SYNC / MANIFEST, manifest)


def _rotate(root: Path, rules: Rules, now: datetime, trash_days: int) -> list[Move]:
    _mend(root)
    stamp = read_model(root / SYNC / MANIFEST, NightManifest)
    if stamp is None:
        raise IntegrityError(str(root / SYNC), "a stamped sync", "none")
    moves = plan(retained(root), rules, stamp.ended, now)
    for move in moves:
        if move.to is None:
            _put_away(root / move.point, f"{_TRASH}{now + timedelta(days=trash_days):%Y-%m-%d}-")
        else:
            (root / move.point).rename(root / move.to)
    newest = root / f"{rules.retain[0].interval}.0"
    found = read_model(newest / MANIFEST, NightManifest)
    if found != stamp:
        expected = f"the stamp of night {stamp.id}"
        raise IntegrityError(str(newest), expected, f"that of {found.id}: was a clock wrong?" if found else "none")
    sync_folder(root)
    return moves


def _mend(root: Path) -> None:
    """Close the gap that a killed rotation left.

    A rotation frees the last place first and shifts then; without this the next one would free it a second time.
    """
    next_free: dict[str, int] = {}
    for name in points(root):
        interval, _, number = name.partition(".")
        if interval not in _INTERVALS:
            continue
        place = next_free.get(interval, 0)
        next_free[interval] = place + 1
        if int(number) != place:
            (root / name).rename(root / f"{interval}.{place}")


def _put_away(folder: Path, prefix: str) -> None:
    """Rename what is to be removed: half removed, it must not look like a backup."""
    folder.rename(folder.with_name(f"{prefix}{folder.name.lstrip('.')}-{os.urandom(4).hex()}"))


def _doomed(root: Path, today: date) -> list[Path]:
    """What is to be removed by now."""
    due = [path for path in root.glob(f"{_TRASH}*") if path.name.removeprefix(_TRASH)[:10] <= today.isoformat()]
    return [*_left(root), *due]


def _left(root: Path) -> list[Path]:
    """What failed runs left; `_delete.` is rsnapshot's own, should somebody have called that."""
    return [*root.glob("_delete.*"), *root.glob(f"{_DOOMED}*")]


def _run(config: Path, command: str, root: Path, deadline_s: float, watch: Callable[[], None]) -> None:
    name = f"rsnapshot {command} of {root.name}"
    argv = ["rsnapshot", "-c", str(config), command]
    finished = process.run(argv, deadline_s=deadline_s, accept=lambda status: True, watch=watch, name=name)
    if finished.status == 0:
        return
    said = f"{finished.stderr}\n{finished.text[-process.TAIL_BYTES :]}"
    if "No space left on device" in said or "Disk quota exceeded" in said:
        raise StoreFull(str(root), "more", "too few")
    raise CommandFailed(name, finished.status, said.strip())
