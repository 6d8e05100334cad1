"""The listings of nights, searched and compared: no tree is walked and no file is read.

A listing holds the regular files of a night, in the order of its tree. What is found is looked at for its size alone,
where the night lies in a folder. What touches the permanent store is called by `tasks.drivers.permanent`.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.drivers import night_changes
from tasks.drivers.digest import listing_line, opened, parse_listing_line
from tasks.drivers.night_changes import proven
from tasks.errors import IntegrityError
from tasks.model.file_history import Difference, Found, differences
from tasks.model.manifest import LISTING, NightManifest
from tasks.model.name_pattern import NamePattern


@dataclass(frozen=True)
class ListedNight:
    """A night whose listing lies in `folder`, beside its data where that is there too."""

    folder: Path
    manifest: NightManifest


def search(nights: Sequence[ListedNight], pattern: NamePattern) -> dict[str, dict[str, Found]]:
    """What the pattern means in each night: its id → path from `/` → file.

    IntegrityError when a listing is not the one of its manifest.
    """
    by_listing: dict[str, list[tuple[str, bytes]]] = {}
    found = {}
    for night in nights:
        sums = night.manifest.listing_sha256
        if sums not in by_listing:
            by_listing[sums] = list(_matching(_content(night), pattern))
        with _data(night) as data:
            found[night.manifest.id] = {
                shown(path): Found(sha256, _size(data, path)) for sha256, path in by_listing[sums]
            }
    return found


def compare(old: ListedNight, new: ListedNight, below: str = "/") -> list[Difference]:
    """What differs between two nights at a path and below it, sorted by path.

    IntegrityError when a listing is not the one of its manifest.
    """
    gone, came = night_changes.differences(
        proven(old.folder / LISTING, old.manifest), proven(new.folder / LISTING, new.manifest)
    )
    return differences(_found(old, gone, below), _found(new, came, below))


def at(night: ListedNight, below: str = "/") -> dict[str, Found]:
    """The files of a night at a path and below it: path from `/` → file.

    IntegrityError when its listing is not the one of its manifest.
    """
    return _found(night, lines_of(proven(night.folder / LISTING, night.manifest), [below]), below)


def _found(night: ListedNight, sums: Mapping[bytes, str], below: str) -> dict[str, Found]:
    folder = os.fsencode(below.strip("/"))
    with _data(night) as data:
        return {
            shown(path): Found(sha256, _size(data, path)) for path, sha256 in sums.items() if is_below(path, folder)
        }


def lines_of(listing: Path, paths: Sequence[str]) -> dict[bytes, str]:
    """The files of a listing at the paths, and below them: path without a leading slash → sha256."""
    folders = [os.fsencode(path.strip("/")) for path in paths]
    found = {}
    with listing.open("rb") as lines:
        for line in lines:
            sha256, path = parse_listing_line(line)
            if any(is_below(path, folder) for folder in folders):
                found[path] = sha256
    return found


def is_below(path: bytes, folder: bytes) -> bool:
    """Whether a path is the folder or in it; everything is in the empty one, the root."""
    return not folder or path == folder or path.startswith(folder + b"/")


def shown(path: bytes) -> str:
    """A path of a listing as the client has it; bytes that are not UTF-8 survive as surrogates."""
    return "/" + os.fsdecode(path)


def _content(night: ListedNight) -> bytes:
    listing, expected = night.folder / LISTING, night.manifest.listing_sha256
    content = listing.read_bytes() if listing.is_file() else b""
    if (found := hashlib.sha256(content).hexdigest()) != expected:
        raise IntegrityError(str(listing), expected, found)
    return content


def _matching(content: bytes, pattern: NamePattern) -> Iterator[tuple[str, bytes]]:
    first, *others = [_as_listed(literal) for literal in pattern.literals] or [b""]
    for line in _candidates(content, first):
        if all(literal in line for literal in others):
            sha256, path = parse_listing_line(line)
            if pattern.matches(path):
                yield sha256, path


def _candidates(content: bytes, literal: bytes) -> Iterator[bytes]:
    """The lines that have some bytes: of 500,000 few are looked at one by one."""
    if not literal:
        yield from content.splitlines(keepends=True)
        return
    place = content.find(literal)
    while place >= 0:
        end = content.find(b"\n", place) + 1
        yield content[content.rfind(b"\n", 0, place) + 1 : end]
        place = content.find(literal, end)


def _as_listed(literal: bytes) -> bytes:
    """Bytes of a path as they stand in a line."""
    return listing_line("", b"/" + literal).partition(b"/")[2].removesuffix(b"\n")


@contextmanager
def _data(night: ListedNight) -> Iterator[int | None]:
    """The night's files; None where only its listing is there."""
    if not (night.folder / "data").is_dir():
        yield None
        return
    with opened(night.folder / "data") as data:
        yield data


def _size(data: int | None, path: bytes) -> int | None:
    if data is None:
        return None
    try:
        return os.stat(path, dir_fd=data, follow_symlinks=False).st_size
    except OSError:
        return None  # it is for people; whether the file is there is the listing's word
