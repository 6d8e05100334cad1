"""A sync that is made of what is there already: the newest point's files as they are, and only what changed by rsync.

rsync --link-dest looks at every file of both trees and links it, which for 500,000 files takes longer than all else
(docs/performance.md). Stage 1 has looked already (`tasks.drivers.changed`); and a tree that is due for removal is
nearly the newest point: what it does not share with that one is linked anew, or left to rsync with a list.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from tasks.drivers import process
from tasks.drivers.changed import Changed
from tasks.drivers.digest import folder_inodes, opened
from tasks.drivers.restore_points import REMAINS, due, hide, retained
from tasks.model.manifest import MANIFEST
from tasks.model.retention import SYNC

FULL_EVERY = 7
"""Each so manyth renewal is compared with the overnight copy, by the size, time and attributes of every file."""
LINK_DEADLINE_S = 6 * 3600
_GOING = ".going"
"""In the sync: folders that it is not to have."""


@dataclass(frozen=True)
class Renewal:
    """What a renewal goes by: what stage 1 found, rsync's options, and two files of this server."""

    changed: Changed
    options: tuple[str, ...]
    listed: Path
    """What rsync is to copy; gone when that is done."""
    counted: Path
    """How many renewals there were since all files were compared."""

    @property
    def count(self) -> int:
        """That, with this one; as if it were time when it is not known."""
        with suppress(OSError, ValueError):
            return int(self.counted.read_text()) + 1
        return FULL_EVERY


class _NotAlike(Exception):
    """A file that did not change is not in the newest point."""


def begin(root: Path, source: Path, renewal: Renewal, newest: str, today: date) -> bool:
    """Make `.sync` of the point `newest` but for what changed, and the list of what rsync has to copy from `source`.

    A tree that was given up and is due by `today` may become it. False when it is not to be had so, and what is there
    as `.sync` is no good then: the point is not of the night that was compared with, or not sound, or lacks a file that
    did not change. Called by `permanent.at`.
    """
    point = next((point for point in retained(root) if point.name == newest), None)
    if point is None or not point.sound or point.night != renewal.changed.since:
        return False
    sync = root / SYNC
    if trees := [tree for tree in due(root, today) if (tree / "data").is_dir()]:
        (trees[-1] / MANIFEST).unlink(missing_ok=True)
        trees[-1].rename(sync)
        # Older points share the files beside data/, and rsync would change their times in place.
        for other in [path for path in sync.iterdir() if path.name != "data"]:
            hide(other, f"{_GOING}-") if other.is_dir() else other.unlink()
    else:
        sync.mkdir(mode=0o700)
        argv = ["cp", "--archive", "--link", "--", str(root / newest / "data"), str(sync)]
        process.run(argv, deadline_s=LINK_DEADLINE_S)
    (sync / _GOING).mkdir()
    try:
        _list(renewal.listed, source, _settle(sync, root / newest / "data", source / "data", renewal.changed.paths))
    except _NotAlike:
        return False
    for folder in list(sync.glob(f"{_GOING}*")):
        folder.rename(root / f"{REMAINS}going-{os.urandom(4).hex()}")
    return True


def _list(path: Path, source: Path, to_copy: Iterator[bytes]) -> None:
    names = [b".", *(os.fsencode(entry.name) for entry in source.iterdir() if entry.name != MANIFEST)]
    with path.open("wb") as file:
        file.writelines(name + b"\0" for name in names)
        file.writelines(b"data/" + name + b"\0" for name in to_copy)


def _settle(sync: Path, newest: Path, source: Path, changed: frozenset[bytes]) -> Iterator[bytes]:
    """Make the sync have the folders of `source`, and of its other names those of `newest` that did not change.

    Yields what rsync has to copy: all folders, for their attributes, and what changed. Folders that are to go are moved
    out of the way, however deep they are.
    """
    with (
        opened(sync / "data") as ours,
        opened(sync / _GOING) as going,
        opened(newest) as known,
        opened(source) as wanted,
    ):
        pending, doomed = [b""], 0
        while pending:
            below = pending.pop()
            folders, names = _entries(wanted, below)
            our_folders, our_names = _entries(ours, below)
            with opened(below or b".", ours) as here:
                for name in our_folders - folders:
                    os.rename(name, str(doomed := doomed + 1), src_dir_fd=here, dst_dir_fd=going)
                for name in our_names.keys() - names.keys():
                    os.unlink(name, dir_fd=here)
                for name in folders - our_folders:
                    os.mkdir(name, 0o700, dir_fd=here)
                yield from _settle_names(here, known, below, names, our_names, changed)
            found = [os.path.join(below, os.fsencode(name)) for name in folders]
            yield from found
            pending += found


def _settle_names(
    here: int,
    known: int,
    below: bytes,
    names: dict[str, int],
    ours: dict[str, int],
    changed: frozenset[bytes],
) -> Generator[bytes, None, None]:
    """All but the folders of one folder."""
    theirs = folder_inodes(known, below)
    with ExitStack() as stack:
        there = stack.enter_context(opened(below or b".", known)) if theirs else -1
        for name in names:
            path = os.path.join(below, os.fsencode(name))
            copied = path in changed
            if not copied and name not in theirs:
                raise _NotAlike(path)
            if not copied and ours.get(name) == theirs[name]:
                continue
            if name in ours:
                os.unlink(name, dir_fd=here)
            if copied:
                yield path
            else:
                os.link(name, name, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)


def _entries(root: int, below: bytes) -> tuple[set[str], dict[str, int]]:
    """The folders in a folder, and the inodes of all else by name."""
    folders: set[str] = set()
    names: dict[str, int] = {}
    with opened(below or b".", root) as folder, os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.add(entry.name)
            else:
                names[entry.name] = entry.inode()
    return folders, names
