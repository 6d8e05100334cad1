"""rsnapshot 1.4: one root per client, `rsnapshot sync` into `.sync`; rotation is `tasks.drivers.restore_points`'.

With link_dest the new tree is hard-linked to the newest point by rsync and `.sync` itself becomes `daily.0`. A `.sync`
that an interrupted run left is never written into: its files share their inodes with older points, and rsync would
change owners and modes of those in place.
"""

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tasks.drivers import process
from tasks.drivers.permanent import PermanentPlace, at, watching
from tasks.drivers.restore_points import hide, mend, remains
from tasks.drivers.rsync import EXACT_TIMES
from tasks.drivers.space import require_for_point
from tasks.drivers.store import flush, read_model, remove, verify_night, write_model
from tasks.errors import CommandFailed, IntegrityError, StoreFull, StoreSilent, WriteLost
from tasks.model.manifest import MANIFEST, NightManifest
from tasks.model.retention import SYNC, Retain

_handles: dict[str, int] = {}
"""Of the child that makes the calls."""


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


def sync(place: PermanentPlace, config: Path, source: Path, root: Path, deadline_s: float) -> None:
    """Copy `source` to `<root>/.sync` and stamp it with the source's manifest once everything else is there.

    `root` lies in the permanent store `place` and is made when it is not there. Raises StoreSilent when that does not
    answer, StoreFull, CommandFailed of rsnapshot, IntegrityError when what arrived is not what was to be copied.
    """
    handle = at(place, _make_ready, root)
    try:
        for folder in at(place, remains, root):
            remove(folder, watching(place))  # first: what is to be copied may need the room
        at(place, require_for_point, source, root)
        _run(config, "sync", root, deadline_s, watching(place))
        manifest = read_model(source / MANIFEST, NightManifest)
        if manifest is None:
            raise IntegrityError(str(source), "a night with a manifest", "none")
        at(place, _stamp, handle, root, manifest)
    finally:
        with suppress(StoreSilent):  # the child that had it is gone
            at(place, _let_go, handle)


def _make_ready(root: Path) -> str:
    """Make the root, close gaps, put an old `.sync` out of sight; the root is opened, and called as is returned."""
    root.mkdir(exist_ok=True, mode=0o700)
    mend(root)
    if (root / SYNC).exists():
        hide(root / SYNC)
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
