"""A sync that is made of what is there already: the newest point's files as they are, and only what changed by rsync.

rsync --link-dest looks at every file of both trees and links it, which for 500,000 files takes longer than all else
(docs/performance.md). Stage 1 has looked already (`tasks.drivers.changed`); and a tree that is due for removal is
nearly the newest point: what it does not share with that one is linked anew, or left to rsync with a list.
"""

import errno
import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from tasks.drivers import process
from tasks.drivers.changed import Changed, folder_inodes
from tasks.drivers.digest import opened
from tasks.drivers.restore_points import due, retained
from tasks.model.manifest import MANIFEST, NightManifest
from tasks.model.retention import SYNC

ONE_IN = 4
"""When more of the files changed than one in so many, rsync does it as well."""
FULL_EVERY = 7
"""Each so manyth renewal is compared with the overnight copy, file by file: whatever went past us is found by then."""
LINK_DEADLINE_S = 6 * 3600


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

    False when it is not to be had so, and what is there as `.sync` is no good then: the point is not of the night that
    was compared with, or not sound, or too much changed. Called by `permanent.at`.
    """
    point = next((point for point in retained(root) if point.name == newest), None)
    if point is None or not point.sound or point.night != renewal.changed.since:
        return False
    manifest = NightManifest.model_validate_json((root / newest / MANIFEST).read_bytes())
    if len(renewal.changed.paths) * ONE_IN > manifest.files:
        return False
    sync = root / SYNC
    if trees := [tree for tree in due(root, today) if (tree / "data").is_dir()]:
        (trees[-1] / MANIFEST).unlink(missing_ok=True)
        trees[-1].rename(sync)
        for other in sync.iterdir():
            if (
                other.name != "data"
            ):  # rsync would change owners and times of a file in place, and older points share it
                other.unlink()
    else:
        sync.mkdir(mode=0o700)
        argv = ["cp", "--archive", "--link", "--", str(root / newest / "data"), str(sync)]
        process.run(argv, deadline_s=LINK_DEADLINE_S)
    paths = _settle(sync / "data", root / newest / "data", source / "data", renewal.changed.paths)
    names = [b".", *(os.fsencode(path.name) for path in source.iterdir() if path.name != MANIFEST)]
    with renewal.listed.open("wb") as file:
        file.writelines(name + b"\0" for name in names)
        try:
            file.writelines(b"data/" + path + b"\0" for path in paths)
        except _NotAlike:
            return False
    return True


def _settle(sync: Path, newest: Path, source: Path, changed: frozenset[bytes]) -> Iterator[bytes]:
    """Make `sync` have the folders of `source`, and of its other names those of `newest` that did not change.

    Yields what rsync has to copy: all folders, for their attributes, and what changed.
    """
    with opened(sync) as ours, opened(newest) as known, opened(source) as wanted:
        pending = [b""]
        while pending:
            below = pending.pop()
            folders = yield from _settle_folder(ours, known, wanted, below, changed)
            yield from folders
            pending += folders


def _settle_folder(
    ours: int, known: int, wanted: int, below: bytes, changed: frozenset[bytes]
) -> Generator[bytes, None, list[bytes]]:
    """One folder of it; returns the folders below."""
    folders, names = _entries(wanted, below)
    our_folders, our_names = _entries(ours, below)
    their_names = folder_inodes(known, below)
    with ExitStack() as stack:
        here = stack.enter_context(opened(below or b".", ours))
        for name in our_folders - folders:
            shutil.rmtree(name, dir_fd=here)
        for name in our_names.keys() - names.keys():
            os.unlink(name, dir_fd=here)
        for name in folders - our_folders:
            os.mkdir(name, 0o700, dir_fd=here)
        there = stack.enter_context(opened(below or b".", known)) if their_names else -1
        for name in names:
            path, ours_is, theirs_is = (
                os.path.join(below, os.fsencode(name)),
                our_names.get(name),
                their_names.get(name),
            )
            copied = path in changed
            if not copied and theirs_is is None:
                raise _NotAlike(path)
            if not copied and ours_is == theirs_is:
                continue
            if ours_is is not None:
                os.unlink(name, dir_fd=here)
            if copied or not _linked(name, there, here):
                yield path
    return [os.path.join(below, os.fsencode(name)) for name in folders]


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


def _linked(name: str, there: int, here: int) -> bool:
    """Whether it could be linked; a file may have so many names and no more."""
    try:
        os.link(name, name, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
    except OSError as exc:
        if exc.errno != errno.EMLINK:
            raise
        return False
    return True
