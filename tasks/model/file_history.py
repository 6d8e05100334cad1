"""In which nights a file is, in which versions, and when it was gone; and what differs between two nights."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
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


def is_hidden(path: str, places: Iterable[str]) -> bool:
    """Whether a path is one of the places that could not be looked at, or below one."""
    return any(path == place or path.startswith(f"{place.rstrip('/')}/") for place in places)


def histories(
    nights: Sequence[str],
    found: Mapping[str, Mapping[str, Found]],
    hidden: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> list[FileHistory]:
    """The history of every path found: night → path → what it was there; `nights` are all that were searched.

    `hidden`: night → the places that could not be looked at in it: it says nothing of what is there.
    """
    rows = []
    for path in sorted({path for files in found.values() for path in files}):
        saw = [night for night in sorted(nights) if not is_hidden(path, hidden.get(night, ()))]
        rows.append(_history(path, saw, [found.get(night, {}).get(path) for night in saw]))
    return rows


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


def differences(old: Mapping[str, Found], new: Mapping[str, Found], hidden: Collection[str] = ()) -> list[Difference]:
    """What of two sets of files, by their paths, is not the same; sorted by path.

    `hidden`: the places that could not be looked at on one side.
    """
    rows = []
    for path in sorted(old.keys() | new.keys()):
        if is_hidden(path, hidden):
            continue
        before, after = old.get(path), new.get(path)
        if before and after and before.sha256 == after.sha256:
            continue
        change: Literal["added", "removed", "changed"] = "added" if not before else "changed" if after else "removed"
        sizes = (before.size_bytes if before else None, after.size_bytes if after else None)
        rows.append(Difference(path, change, *sizes))
    return rows
