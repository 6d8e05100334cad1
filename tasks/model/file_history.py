"""In which nights a file is, in which versions, and when it was gone; and what differs between two nights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal


@dataclass(frozen=True)
class Found:
    """A regular file in a night's listing; the size is None where only the listing could be read."""

    sha256: str
    size_bytes: int | None


@dataclass(frozen=True)
class Version:
    """A file's content in nights that follow one another."""

    sha256: str
    size_bytes: int | None
    nights: tuple[str, ...]
    """Ids, oldest first."""


@dataclass(frozen=True)
class FileHistory:
    """A path through all nights; one that came back with other content, or after a gap, has one more version."""

    path: str
    versions: tuple[Version, ...]
    deleted: str | None
    """The first night without it; None while the newest night has it."""


def histories(nights: Sequence[str], found: Mapping[str, Mapping[str, Found]]) -> list[FileHistory]:
    """The history of every path found: night → path → what it was there; `nights` are all that were searched."""
    by_age = sorted(nights)
    paths = sorted({path for files in found.values() for path in files})
    return [_history(path, by_age, [found.get(night, {}).get(path) for night in by_age]) for path in paths]


def _history(path: str, nights: Sequence[str], seen: Sequence[Found | None]) -> FileHistory:
    versions = []
    for content, rows in groupby(zip(nights, seen, strict=True), key=lambda row: row[1] and row[1].sha256):
        same = [(night, file) for night, file in rows if file is not None]
        if content:
            size_bytes = next((file.size_bytes for _, file in same if file.size_bytes is not None), None)
            versions.append(Version(content, size_bytes, tuple(night for night, _ in same)))
    last = nights.index(versions[-1].nights[-1])
    return FileHistory(path, tuple(versions), nights[last + 1] if last + 1 < len(nights) else None)


@dataclass(frozen=True)
class Difference:
    """A regular file that is not the same in two nights; sizes are None where it is not, or cannot be looked at."""

    path: str
    change: Literal["added", "removed", "changed"]
    old_bytes: int | None
    new_bytes: int | None


def differences(old: Mapping[str, Found], new: Mapping[str, Found]) -> list[Difference]:
    """What of two sets of files, by their paths, is not the same; sorted by path."""
    rows = []
    for path in sorted(old.keys() | new.keys()):
        before, after = old.get(path), new.get(path)
        if before and after and before.sha256 == after.sha256:
            continue
        change: Literal["added", "removed", "changed"] = "added" if not before else "changed" if after else "removed"
        sizes = (before.size_bytes if before else None, after.size_bytes if after else None)
        rows.append(Difference(path, change, *sizes))
    return rows
