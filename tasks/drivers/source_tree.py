"""Look into a night's files on this machine. A client made them: no link in them is followed, not on the way either."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from tasks.drivers.digest import opened, walk
from tasks.errors import SourceRefused
from tasks.model.image_update import place_of_path

_LARGEST_TEXT = 4 << 20
"""A grub.cfg of many kernels has 100 KiB."""


def names_in(source: Path, place: str) -> list[str] | None:
    """What is in a folder of the night, sorted; None when it is not there. SourceRefused when it is no folder."""
    try:
        with opened(source) as root, opened(_inside(place), root) as folder:
            return sorted(os.listdir(folder))
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            return None
        if exc.errno in (errno.ELOOP, errno.ENOTDIR, errno.EXDEV):
            raise SourceRefused(str(source), f"{place} is no folder in it, or leads elsewhere") from exc
        raise


def exists(source: Path, path: str) -> bool:
    """Whether the night has something of that name, a link perhaps, in a folder that is none."""
    folder, _, name = path.rpartition("/")
    try:
        return name in (names_in(source, folder) or ())
    except SourceRefused:
        return False


def text_of(source: Path, path: str) -> str:
    """A text file of the night; empty when there is no such regular file, or it lies behind a link."""
    folder, _, name = path.rpartition("/")
    try:
        with opened(source) as root, opened(_inside(folder), root) as parent:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(name, flags, dir_fd=parent), "rb") as file:
                return file.read(_LARGEST_TEXT).decode("utf-8", "replace")
    except OSError:
        return ""


def bytes_by_place(source: Path, places: Iterable[str]) -> dict[str, int]:
    """The bytes that the night's files take at least, by the mount point that they lie on: without holes and links."""
    places = list(places)
    found, seen = dict.fromkeys(places, 0), set[int]()
    with opened(source) as root:
        for entries in walk(root):
            if not entries:
                continue
            place = place_of_path("/" + os.fsdecode(entries[0].path.rpartition(b"/")[0]), places)
            for _, inode, size_bytes, allocated, _ in entries:
                if size_bytes and inode not in seen:
                    seen.add(inode)
                    found[place] = found.get(place, 0) + min(size_bytes, allocated)
    return found


def _inside(place: str) -> bytes:
    return os.fsencode(place.strip("/")) or b"."
