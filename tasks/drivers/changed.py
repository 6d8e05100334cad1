"""Which files of a night are not the very files of the night before: stage 1 has found that, nobody need look again.

A new overnight copy shares the inode of every file in which nothing changed, neither content nor attributes, with the
one before. So the inodes in the folders tell what changed, without a stat(2) of each file.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.drivers.digest import opened

ONE_IN = 4
"""When more of the files changed than one in so many, a list of them serves nobody."""


@dataclass(frozen=True)
class Changed:
    """The paths (relative to data/) of all but folders that are new or changed in `night` since the night `since`."""

    since: str
    night: str
    paths: frozenset[bytes]


def find(new: Path, last: Path, most: int) -> frozenset[bytes] | None:
    """All but folders below `new` that is not the inode of its namesake below `last`; of such an inode, all names.

    None when that is more than `most`.
    """
    found: set[bytes] = set()
    shared: set[int] = set()
    with opened(new) as root, opened(last) as old:
        for path, inode, before in _both(root, old):
            if inode == before:
                continue
            found.add(path)
            # Another name of it may be there that is not new: who copies one must link it to the other.
            if os.stat(path, dir_fd=root, follow_symlinks=False).st_nlink > 1:
                shared.add(inode)
            if len(found) > most:
                return None
        if shared:
            found.update(path for path, inode, _ in _both(root, None) if inode in shared)
    return frozenset(found)


def _both(new: int, old: int | None) -> Iterator[tuple[bytes, int, int | None]]:
    pending = [b""]
    while pending:
        below = pending.pop()
        known = folder_inodes(old, below) if old is not None else {}
        with opened(below or b".", new) as folder, os.scandir(folder) as entries:
            for entry in entries:
                path = os.path.join(below, os.fsencode(entry.name))
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                else:
                    yield path, entry.inode(), known.get(entry.name)


def folder_inodes(root: int, below: bytes) -> dict[str, int]:
    """The inodes of what is in a folder and is no folder, by name; nothing when there is no such folder."""
    try:
        with opened(below or b".", root) as folder, os.scandir(folder) as entries:
            return {entry.name: entry.inode() for entry in entries if not entry.is_dir(follow_symlinks=False)}
    except OSError:
        return {}


def write(path: Path, changed: Changed) -> None:
    """Keep it: a line of JSON, then the paths, each ended by a NUL as rsync --from0 reads them."""
    content = b"".join(name + b"\0" for name in sorted(changed.paths))
    head = {"since": changed.since, "night": changed.night, "sha256": hashlib.sha256(content).hexdigest()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(json.dumps(head).encode() + b"\n" + content)
    partial.rename(path)


def read(path: Path) -> Changed | None:
    """What was kept; None when there is nothing, or not what was written."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        line, _, content = path.read_bytes().partition(b"\n")
        head = json.loads(line)
        if hashlib.sha256(content).hexdigest() == head["sha256"]:
            return Changed(head["since"], head["night"], frozenset(content.split(b"\0")[:-1]))
    return None
