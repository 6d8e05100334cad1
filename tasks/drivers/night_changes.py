"""What a night changed since a restore point: from their two listings, and from a sample of what differs.

The listings hold the sha256 of every file, so only files that differ are opened, and few of those: a night without
changes costs nothing. Of their content nothing but the number of each byte is looked at.
"""

import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from tasks.drivers.digest import opened, parse_listing_line, sha256_file
from tasks.errors import IntegrityError
from tasks.model.anomaly import FEW_FILES, Change
from tasks.model.entropy import LEAST, PIECE, compressed, plain, random_looking, scrambled
from tasks.model.manifest import LISTING, NightManifest

MOST_PAIRS, MOST_OTHERS = 200, 100
"""So many files are opened at most: of those that changed, and of those that are new or gone."""
T = TypeVar("T")
Pair = tuple[bytes, bytes]
"""What a file was called, and what it is called now."""


class Before(Protocol):
    """A restore point as a comparison needs it; far away, and asked for as little as will do."""

    def listing(self) -> Path:
        """Its listing; IntegrityError when it cannot be had."""

    def files(self, paths: Sequence[bytes]) -> Path | None:
        """The folder below which these of its files lie, as far as they can be had; None when none can."""


@dataclass(frozen=True)
class Folder:
    """A night that lies in a folder."""

    path: Path

    def listing(self) -> Path:
        """As `Before` says."""
        return self.path / LISTING

    def files(self, paths: Sequence[bytes]) -> Path:
        """As `Before` says."""
        return self.path / "data"


def against_newest(
    points: Mapping[str, NightManifest | None], compared: Callable[[str, NightManifest], Change]
) -> tuple[Change | None, tuple[str, ...]]:
    """A night against the newest point whose listing is whole, None when there is none; and newer points."""
    stamped = [(name, found) for name, found in points.items() if found]
    damaged: list[str] = []
    for name, found in sorted(stamped, key=lambda item: item[1].ended, reverse=True):
        try:
            return compared(name, found), tuple(damaged)
        except IntegrityError:
            damaged.append(name)
    return None, tuple(damaged)


def compare(before: Before, old: NightManifest, new_folder: Path, new: NightManifest) -> Change:
    """The figures of a night against a point; IntegrityError when a listing is not the one of its manifest."""
    change = Change(
        night=new.id,
        against=old.id,
        files=new.files,
        files_before=old.files,
        size_bytes=new.size_bytes,
        size_before=old.size_bytes,
    )
    if old.listing_sha256 == new.listing_sha256:
        return change
    gone, came = differences(proven(before.listing(), old), proven(new_folder / LISTING, new))
    changed = sorted(gone.keys() & came.keys())
    deleted = {path: sha256 for path, sha256 in gone.items() if path not in came}
    fresh = {path: sha256 for path, sha256 in came.items() if path not in gone}
    moved = Counter(deleted.values()) & Counter(fresh.values())
    deleted, fresh = _without(deleted, moved), _without(fresh, moved)
    with opened(new_folder / "data") as after:
        written_bytes = sum(_size(after, path) for path in (*changed, *fresh))
        estimate = _scrambled(before, after, changed, deleted, fresh, random.Random(new.id))  # noqa: S311 - a sample
    return change.model_copy(
        update={
            "new": len(fresh),
            "changed": len(changed),
            "deleted": len(deleted),
            "moved": moved.total(),
            "scrambled": estimate,
            "written_bytes": written_bytes,
        }
    )


def proven(listing: Path, manifest: NightManifest) -> Path:
    """A night's listing; IntegrityError when it is not the one of the manifest."""
    found = sha256_file(listing) if listing.is_file() else "nothing"
    if found != manifest.listing_sha256:
        raise IntegrityError(str(listing), manifest.listing_sha256, found)
    return listing


def differences(old: Path, new: Path) -> tuple[dict[bytes, str], dict[bytes, str]]:
    """The paths, with their sha256, of the lines that only one of the listings has."""
    with old.open("rb") as lines:
        gone = set(lines)
    came = []
    with new.open("rb") as lines:
        for line in lines:
            if line in gone:
                gone.remove(line)
            else:
                came.append(line)
    before, after = ({path: sha256 for sha256, path in map(parse_listing_line, side)} for side in (gone, came))
    return before, after


def _without(files: dict[bytes, str], moved: Counter[str]) -> dict[bytes, str]:
    """The files but for so many of each content."""
    left, kept = Counter(moved), {}
    for path, sha256 in files.items():
        if left[sha256]:
            left[sha256] -= 1
        else:
            kept[path] = sha256
    return kept


def _scrambled(
    before: Before,
    after: int,
    changed: Sequence[bytes],
    deleted: Mapping[bytes, str],
    fresh: Mapping[bytes, str],
    choice: random.Random,
) -> int:
    """How many files, plain before, look encrypted now, as far as a sample tells.

    A file is looked at beside itself, or beside the one whose name it has with an ending added. Of those that bear
    quite other names, as many count as both plain ones are gone and scrambled ones are new. Older versions are opened
    only where the new one looks like chance, and mostly none does.
    """
    renamed = [(path.rpartition(b".")[0], path) for path in sorted(fresh) if path.rpartition(b".")[0] in deleted]
    pairs = [*((path, path) for path in changed), *renamed]
    lost = sorted(deleted.keys() - {old for old, _ in renamed})
    found = sorted(fresh.keys() - {new for _, new in renamed})
    if len(pairs) + min(len(lost), len(found)) < FEW_FILES:
        return 0
    looked, came = _sample(choice, pairs, MOST_PAIRS), _sample(choice, found, MOST_OTHERS)
    suspects = {pair: pieces for pair in looked if (pieces := _like_chance(after, pair[1]))}
    random_ones = sum(_is_random(after, path) for path in came)
    went = _sample(choice, lost, MOST_OTHERS) if random_ones else []
    wanted = [*(old for old, _ in suspects), *went]
    folder = before.files(wanted) if wanted else None
    if folder is None:
        # Without its older version the ending is what tells a scrambled file from a picture.
        return _of_all(pairs, looked, sum(old != new for old, new in suspects))
    with opened(folder) as there:
        turned = sum(scrambled(_pieces(there, old), now) for (old, _), now in suspects.items())
        plain_ones = sum(_was_plain(there, path) for path in went)
    return _of_all(pairs, looked, turned) + min(_of_all(lost, went, plain_ones), _of_all(found, came, random_ones))


def _sample(choice: random.Random, files: Sequence[T], most: int) -> Sequence[T]:
    return files if len(files) <= most else choice.sample(files, most)


def _of_all(files: Sequence[T], sample: Sequence[T], count: int) -> int:
    """How many of the files, if as many of all as of the sample."""
    return round(len(files) * count / max(1, len(sample)))


def _like_chance(folder: int, path: bytes) -> list[bytes]:
    """The pieces of a file of which one looks like chance, unless a compressor made it; else []."""
    pieces = _pieces(folder, path)
    return [] if not any(map(random_looking, pieces)) or compressed(path, pieces[0]) else pieces


def _was_plain(folder: int, path: bytes) -> bool:
    return any(map(plain, _pieces(folder, path)[:2]))


def _is_random(folder: int, path: bytes) -> bool:
    head = _pieces(folder, path)[:2]
    return bool(head) and all(map(random_looking, head)) and not compressed(path, head[0])


def _pieces(folder: int, path: bytes) -> list[bytes]:
    """The first bytes of a file, its beginning, middle and end, as far as they do not overlap; [] if it cannot be read.

    The first bytes are looked at by themselves: a picture's are plain when all that follows looks like chance.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return []
    try:
        size_bytes = os.fstat(handle).st_size
        places = [0, *([size_bytes // 2] if size_bytes >= 4 * PIECE else []), max(0, size_bytes - PIECE)]
        pieces = [os.pread(handle, PIECE, place) for place in (places if size_bytes >= 2 * PIECE else places[:1])]
        return [pieces[0][:LEAST], *pieces]
    except OSError:
        return []
    finally:
        os.close(handle)


def _size(folder: int, path: bytes) -> int:
    try:
        return os.stat(path, dir_fd=folder, follow_symlinks=False).st_size
    except OSError:
        return 0
