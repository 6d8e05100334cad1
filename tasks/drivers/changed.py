"""Which files of a night are not the very files of the night before: stage 1 has found that, nobody need look again.

A new overnight copy shares the inode of every file in which nothing changed, neither content nor attributes, with the
one before, and the walk that lists its files has compared the inodes.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.drivers.digest import Listed, opened, walk

ONE_IN = 4
"""When more of the files changed than one in so many, a list of them serves nobody."""


@dataclass(frozen=True)
class Changed:
    """The paths (relative to data/) of all but folders that are new or changed in `night` since the night `since`."""

    since: str
    night: str
    paths: frozenset[bytes]


def find(root: Path, listed: Listed) -> frozenset[bytes] | None:
    """What of a tree is fresh, with all names of its inodes: who copies one must link it to the others.

    None when there was no tree before, or when nearly all is fresh.
    """
    if listed.fresh is None or len(listed.fresh) * ONE_IN > listed.files:
        return None
    found = set(listed.fresh)
    with opened(root) as folder:
        states = [os.stat(path, dir_fd=folder, follow_symlinks=False) for path in listed.fresh]
        shared = {state.st_ino for state in states if state.st_nlink > 1}
        if shared:
            found.update(entry.path for entries in walk(folder) for entry in entries if entry.inode in shared)
    return frozenset(found)


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
