"""The child process that copies one export of a QEMU's NBD server into a raw file: JSON request in, JSON lines out.

A full copy writes what is allocated into an empty file, an incremental one what the bitmap calls dirty into a clone of
the parent. Both leave the sha256 of every chunk that they touched, made from the bytes that came over the wire.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import nbd

from tasks.drivers.chunks import CHUNK_BYTES, digest_of, read_chunks, write_chunks
from tasks.drivers.thin_file import ThinFile
from tasks.errors import GbsError

CONNECTIONS = 3
ALLOCATION = "base:allocation"
_STATE_ZERO = 2
"""Of base:allocation: reads as zero. https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md"""
_DIRTY = 1
"""Of qemu:dirty-bitmap:*."""
_STATUS_BYTES = 1 << 30


@dataclass(frozen=True)
class Extent:
    """A run of bytes of the export, and whether it reads as zero."""

    offset: int
    length: int
    zero: bool

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.offset + self.length


def extents(handle: Any, bitmap: str | None) -> Iterator[Extent]:
    """What is to be copied, in order: of a full copy the extents that are not zero, else those that are dirty."""
    size, place = handle.get_size(), 0
    while place < size:
        found: dict[str, list[int]] = {}

        def note(context: str, _offset: int, entries: list[int], _error: int, found: Any = found) -> int:
            found[context] = entries
            return 0

        handle.block_status(min(_STATUS_BYTES, size - place), place, note)
        zero = _runs(found[ALLOCATION], place, _STATE_ZERO)
        wanted = _runs(found[bitmap], place, _DIRTY) if bitmap else [(place, zero[-1][1], True)]
        # Each context may answer for less than was asked: what both have told about is taken.
        end = min(zero[-1][1], wanted[-1][1])
        yield from _both(wanted, zero, end, keep_zero=bitmap is not None)
        place = end


def _runs(entries: list[int], place: int, flag: int) -> list[tuple[int, int, bool]]:
    runs = []
    for length, flags in zip(entries[0::2], entries[1::2], strict=True):
        runs.append((place, place + length, bool(flags & flag)))
        place += length
    return runs


def _both(
    wanted: list[tuple[int, int, bool]], zero: list[tuple[int, int, bool]], end: int, *, keep_zero: bool
) -> Iterator[Extent]:
    position = 0
    for begin, until, is_wanted in wanted:
        place = begin
        while is_wanted and place < min(until, end):
            while zero[position][1] <= place:
                position += 1
            stop = min(until, end, zero[position][1])
            if keep_zero or not zero[position][2]:
                yield Extent(place, stop - place, zero[position][2])
            place = stop


def by_chunk(found: Iterator[Extent]) -> Iterator[tuple[int, list[Extent]]]:
    """The extents cut at the borders of chunks, those of one chunk together."""
    number, parts = -1, list[Extent]()
    for extent in found:
        place = extent.offset
        while place < extent.end:
            stop = min(extent.end, (place // CHUNK_BYTES + 1) * CHUNK_BYTES)
            if place // CHUNK_BYTES != number:
                if parts:
                    yield number, parts
                number, parts = place // CHUNK_BYTES, []
            parts.append(Extent(place, stop - place, extent.zero))
            place = stop
    if parts:
        yield number, parts


class Pace:
    """Keeps the threads of a copy, all together, below so many bytes a second."""

    def __init__(self, bytes_per_s: int | None) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    def wait(self, size_bytes: int) -> None:
        """Return when it is time to fetch this much."""
        if self.bytes_per_s is None:
            return
        with self._lock:
            now = time.monotonic()
            begins_at = max(now, self._free_at)
            self._free_at = begins_at + size_bytes / self.bytes_per_s
        time.sleep(max(0.0, begins_at - now))


class Copy:
    """A copy under way: several connections, each with a thread that takes chunk after chunk."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.bitmap: str | None = request["bitmap"]
        self.target = ThinFile(request["target"])
        self.copied = 0
        self.pace = Pace(request["bytes_per_s"])
        self._lanes = threading.local()

    def run(self) -> dict[str, Any]:
        """Copy all, flush it, write the listing; what was copied."""
        digests = read_chunks(Path(self.request["parent_chunks"])) if self.request["parent_chunks"] else {}
        first = self._connect(with_status=True)
        size = first.get_size()
        if size != self.request["size_bytes"]:
            raise ValueError(f"the export has {size} bytes, not {self.request['size_bytes']}")
        os.ftruncate(self.target.handle, size)
        work = list(by_chunk(extents(first, self.bitmap)))
        total = sum(part.length for _, parts in work for part in parts if not part.zero)
        say(progress=[0, total])
        with ThreadPoolExecutor(CONNECTIONS if first.can_multi_conn() else 1) as pool:
            spoken = time.monotonic()
            for number, digest, size_bytes in pool.map(self._chunk, work):
                digests.pop(number, None)
                if digest is not None:
                    digests[number] = digest
                self.copied += size_bytes
                if time.monotonic() - spoken > 1:
                    say(progress=[self.copied, total])
                    spoken = time.monotonic()
        os.fsync(self.target.handle)
        write_chunks(Path(self.request["chunks"]), digests)
        return {"bytes_copied": self.copied}

    def _connect(self, *, with_status: bool) -> Any:
        handle = nbd.NBD()
        handle.set_export_name(self.request["export"])
        if with_status:
            handle.add_meta_context(ALLOCATION)
            if self.bitmap:
                handle.add_meta_context(self.bitmap)
        handle.connect_unix(self.request["socket"])
        if with_status and not all(
            handle.can_meta_context(context) for context in filter(None, (ALLOCATION, self.bitmap))
        ):
            raise ValueError(f"the NBD server does not tell about {self.bitmap or ALLOCATION}")
        return handle

    def _chunk(self, work: tuple[int, list[Extent]]) -> tuple[int, str | None, int]:
        """Copy the extents of one chunk and hash the chunk as it then is."""
        number, parts = work
        if not hasattr(self._lanes, "lane"):
            self._lanes.lane = Lane(self._connect(with_status=False))
        lane: Lane = self._lanes.lane
        begin = number * CHUNK_BYTES
        content = lane.content[: min(CHUNK_BYTES, self.request["size_bytes"] - begin)]
        if sum(part.length for part in parts) < len(content):
            # Of a clone, the chunk is what it was but for what is dirty; elsewhere what is not copied is zero.
            known = os.preadv(self.target.handle, [content], begin) if self.bitmap else 0
            content[known:] = bytes(len(content) - known)
        copied = 0
        for part in parts:
            piece = content[part.offset - begin : part.end - begin]
            if part.zero:
                piece[:] = bytes(part.length)
                self.target.punch(part.offset, part.length)
                continue
            self.pace.wait(part.length)
            lane.read(piece, part.offset)
            is_zero = nbd.Buffer.from_buffer(piece).is_zero
            self.target.write_thin(piece, part.offset, is_zero, punch=bool(self.bitmap))
            copied += part.length
        return number, digest_of(content), copied


class Lane:
    """What a thread of a copy has for itself: a connection, and room for one chunk that is used again and again."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._connection.set_pread_initialize(False)
        self.content = memoryview(mmap(-1, CHUNK_BYTES))

    def read(self, into: memoryview, offset: int) -> None:
        """Fill `into` with what the export has from `offset` on; nbd.Error when it does not answer."""
        cookie = self._connection.aio_pread(nbd.Buffer.from_buffer(into), offset)
        while not self._connection.aio_command_completed(cookie):
            self._connection.poll(-1)


_lock = threading.Lock()


def say(**line: Any) -> None:
    """Write one line."""
    with _lock:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def main() -> int:
    """Answer the request on standard input."""
    try:
        say(answer=Copy(json.loads(sys.stdin.read())).run())
    except (nbd.Error, OSError, ValueError, GbsError) as exc:
        say(failure=str(exc))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
