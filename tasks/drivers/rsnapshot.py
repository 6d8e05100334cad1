"""rsnapshot 1.4: one root per client, `rsnapshot sync` into `.sync`; the renames of a rotation are ours.

With link_dest the new tree is hard-linked to the newest point by rsync and `.sync` itself becomes `daily.0`. A `.sync`
that an interrupted run left is never written into: its files share their inodes with older points, and rsync would
change owners and modes of those in place.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from tasks.drivers import process
from tasks.drivers.permanent import PermanentPlace, at, watching
from tasks.drivers.rsync import EXACT_TIMES
from tasks.drivers.store import flush, read_model, remove, sync_folder, verify_night, write_model
from tasks.errors import CommandFailed, IntegrityError, StoreFull, StoreSilent, WriteLost
from tasks.model.manifest import MANIFEST, NightManifest
from tasks.model.retention import SYNC, Retain, Rotation, due_rotations, moves

_DOOMED = ".delete-"


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
    """The restore points below a client's root by rsnapshot's name; None where there is no manifest."""
    found = {}
    for folder in root.iterdir() if root.is_dir() else ():
        interval, _, number = folder.name.partition(".")
        if interval in ("daily", "weekly", "monthly") and number.isdecimal():
            found[folder.name] = read_model(folder / MANIFEST, NightManifest)
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def points_of(roots: Mapping[str, Path]) -> dict[str, dict[str, NightManifest | None]]:
    """The restore points below several clients' roots, by client."""
    return {client: points(root) for client, root in roots.items()}


def _order(name: str) -> tuple[int, int]:
    interval, _, number = name.partition(".")
    return ("daily", "weekly", "monthly").index(interval), int(number)


def sync(place: PermanentPlace, config: Path, source: Path, root: Path, deadline_s: float) -> None:
    """Copy `source` to `<root>/.sync` and stamp it with the source's manifest once everything else is there.

    `root` lies in the permanent store `place` and is made when it is not there. Raises StoreSilent when that does not
    answer, StoreFull, CommandFailed of rsnapshot, IntegrityError when what arrived is not what was to be copied.
    """
    held, doomed = at(place, _make_ready, root)
    try:
        _remove(place, doomed)
        _run(config, "sync", root, deadline_s, watching(place))
        manifest = read_model(source / MANIFEST, NightManifest)
        if manifest is None:
            raise IntegrityError(str(source), "a night with a manifest", "none")
        at(place, _stamp, held, root, manifest)
    except StoreSilent:
        raise  # who held it is gone
    except BaseException:
        at(place, os.close, held)
        raise
    at(place, os.close, held)


def rotate(place: PermanentPlace, root: Path, retain: Sequence[Retain]) -> list[Rotation]:
    """Rotate as far as the fresh sync asks for; [] when its content is no newer than the newest point.

    rsnapshot's own rotation renames as this does, but says nothing of what it did not find, and deletes every point
    when it is called often enough. Raises IntegrityError when there is no stamped sync, when its stamp did not arrive
    in the newest point, or when the newest point is of a later time: nothing would rotate until then.
    """
    due, doomed = at(place, _rotate, root, retain)
    _remove(place, doomed)
    return due


def _remove(place: PermanentPlace, doomed: Sequence[Path]) -> None:
    for folder in doomed:
        remove(folder, watching(place))


def _make_ready(root: Path) -> tuple[int, list[Path]]:
    """Make the root, close gaps, put an old `.sync` out of sight: the root, opened, and what is to be removed."""
    root.mkdir(exist_ok=True, mode=0o700)
    _mend(root)
    if (root / SYNC).exists():
        _doom(root / SYNC)
    return os.open(root, os.O_RDONLY | os.O_DIRECTORY), _doomed(root)


def _stamp(held: int, root: Path, manifest: NightManifest) -> None:
    """Stamp the sync when all of it is on disk: what lost its files in a power cut must not look like a point.

    `held` was opened before anything was written, or a write error that another flush has seen would not be told again
    (syncfs(2)); rsync does not look for errors that come when it closes a file, as those of NFS do. The error may be
    an earlier one that nobody has seen: the next try will tell.
    """
    try:
        flush(held)
    except OSError as exc:
        raise WriteLost(str(root), exc.strerror) from exc
    verify_night(root / SYNC, manifest)
    write_model(root / SYNC / MANIFEST, manifest)


def _rotate(root: Path, retain: Sequence[Retain]) -> tuple[list[Rotation], list[Path]]:
    _mend(root)
    stamp = read_model(root / SYNC / MANIFEST, NightManifest)
    if stamp is None:
        raise IntegrityError(str(root / SYNC), "a stamped sync", "none")
    content = _content_times(root)
    due = due_rotations(content, retain, stamp.ended)
    for move in moves(content, retain, due):
        if move.to is None:
            _doom(root / move.point)
        else:
            (root / move.point).rename(root / move.to)
    newest = root / f"{retain[0].interval}.0"
    found = read_model(newest / MANIFEST, NightManifest)
    if found != stamp:
        expected = f"the stamp of night {stamp.id}"
        raise IntegrityError(str(newest), expected, f"that of {found.id}: was a clock wrong?" if found else "none")
    sync_folder(root)
    return due, _doomed(root)


def _mend(root: Path) -> None:
    """Close the gap that a killed rotation left.

    A rotation frees the last place first and shifts then; without this the next one would free it a second time.
    """
    next_free: dict[str, int] = {}
    for name in points(root):
        interval, _, number = name.partition(".")
        place = next_free.get(interval, 0)
        next_free[interval] = place + 1
        if int(number) != place:
            (root / name).rename(root / f"{interval}.{place}")


def _doom(folder: Path) -> None:
    """Rename what is to be removed: half removed, it must not look like a backup."""
    folder.rename(folder.with_name(f"{_DOOMED}{folder.name}-{os.urandom(4).hex()}"))


def _doomed(root: Path) -> list[Path]:
    """What was renamed to be removed; `_delete.` is rsnapshot's own, should somebody have called that."""
    return [*root.glob("_delete.*"), *root.glob(f"{_DOOMED}*")]


def _content_times(root: Path) -> dict[str, datetime | None]:
    return {name: manifest.ended if manifest else None for name, manifest in points(root).items()}


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
