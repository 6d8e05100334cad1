"""A file that is written with holes where it is zero."""

import ctypes
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from mmap import PAGESIZE
from pathlib import Path

PIECE_BYTES = 64 << 10
"""A run of zeros that is worth a hole."""
_DIRECT_BYTES = 1 << 20
"""From here on a write goes past the page cache: no copy, and the server keeps what else it had in memory."""
_PUNCH_HOLE_KEEP_SIZE = 3
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class ThinFile:
    """A file that exists, open to be written. Nobody else writes to it, and no two threads the same bytes of it."""

    def __init__(self, path: str | Path) -> None:
        self.handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._direct: int | None = None
        with suppress(OSError):  # EINVAL: a file system without
            self._direct = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)

    def close(self) -> None:
        """Close it; nothing is flushed."""
        os.close(self.handle)
        if self._direct is not None:
            os.close(self._direct)

    def write_thin(self, data: memoryview, offset: int, is_zero: Callable[[int, int], bool], *, punch: bool) -> None:
        """Write what is not zero and leave holes for the rest, or `punch` them where there may be something.

        `is_zero(at, length)` says whether so many bytes of `data` from `at` on are zero.
        """
        pieces = range(0, len(data), PIECE_BYTES)
        for zero, run in groupby(pieces, lambda at: is_zero(at, min(PIECE_BYTES, len(data) - at))):
            places = list(run)
            begin, end = places[0], min(places[-1] + PIECE_BYTES, len(data))
            if not zero:
                self.write(data[begin:end], offset + begin)
            elif punch:
                self.punch(offset + begin, end - begin)

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of it; a long run of whole pages past the page cache."""
        long = len(data) >= _DIRECT_BYTES and offset % PAGESIZE == 0 and len(data) % PAGESIZE == 0
        direct = self._direct if long else None
        while data:
            try:
                written = os.pwrite(self.handle if direct is None else direct, data, offset)
            except OSError as exc:
                if direct is None or exc.errno != errno.EINVAL:
                    raise
                direct = self._direct = None  # it wants other borders than pages
                continue
            data, offset = data[written:], offset + written

    def punch(self, offset: int, length: int) -> None:
        """Make a hole, or write zeros where the file system has none."""
        if _libc.fallocate(self.handle, _PUNCH_HOLE_KEEP_SIZE, offset, length) != 0:
            self.write(memoryview(bytes(length)), offset)
