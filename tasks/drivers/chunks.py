"""sha256 by chunk: what lets an increment be proven without reading the whole disk again.

A listing has a line `<sha256>  <number>` for each chunk of CHUNK_BYTES that is not all zero, by number; the last chunk
may be shorter. `dd if=vda.raw bs=4M skip=<number> count=1 status=none | sha256sum` proves one without us.
"""

import hashlib
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from tasks.errors import IntegrityError

CHUNK_BYTES = 4 << 20
THREADS = 2
SUFFIX = ".chunks"
_LINE = re.compile(r"([0-9a-f]{64})  ([0-9]{1,12})\n")


def digest_of(content: bytes | memoryview) -> str | None:
    """The hex sha256 of a chunk; None when it is all zero."""
    digest = hashlib.sha256(content).hexdigest()
    return None if digest == _zero_digest(len(content)) else digest


@cache
def _zero_digest(length: int) -> str:
    return hashlib.sha256(bytes(length)).hexdigest()


def write_chunks(path: Path, digests: Mapping[int, str]) -> None:
    """Write a listing and flush it to the disk."""
    with path.open("w", encoding="ascii") as file:
        file.writelines(f"{digests[number]}  {number}\n" for number in sorted(digests))
        file.flush()
        os.fsync(file.fileno())


def read_chunks(path: Path) -> dict[int, str]:
    """The digests of a listing by chunk number; IntegrityError when it is not one."""
    digests: dict[int, str] = {}
    with path.open(encoding="ascii", errors="replace", newline="\n") as lines:
        for line in lines:
            match = _LINE.fullmatch(line)
            if match is None or int(match[2]) in digests:
                raise IntegrityError(str(path), "lines of sha256 and chunk number", repr(line[:90]))
            digests[int(match[2])] = match[1]
    return digests


def verify_chunks(
    path: Path,
    digests: Mapping[int, str],
    on_bytes: Callable[[int], None] | None = None,
    *,
    percent: float = 100,
) -> None:
    """Raise IntegrityError for the first chunk of `path` that is not as listed; holes are not read.

    Below 100 `percent`, that part of the chunks is read, chosen by chance; at least one.
    """
    with path.open("rb") as file, ThreadPoolExecutor(THREADS) as pool:
        size = os.fstat(file.fileno()).st_size

        def verify(number: int) -> None:
            content = os.pread(file.fileno(), CHUNK_BYTES, number * CHUNK_BYTES)
            found, expected = digest_of(content), digests.get(number)
            if found != expected:
                where = f"{path}, chunk {number} of {CHUNK_BYTES} bytes"
                raise IntegrityError(where, expected or "zeros", found or "zeros")
            if on_bytes is not None:
                on_bytes(len(content))

        # What is listed and lies in a hole is damaged, too.
        numbers = sorted({*digests, *with_data(file.fileno(), size)})
        if numbers and percent < 100:
            numbers = sorted(random.sample(numbers, max(1, round(len(numbers) * percent / 100))))
        for _ in pool.map(verify, numbers):
            pass


def with_data(handle: int, size: int) -> Iterator[int]:
    """The chunks of a file that are not wholly in a hole (lseek(2), SEEK_DATA)."""
    place, last = 0, -1
    while place < size:
        try:
            begin = os.lseek(handle, place, os.SEEK_DATA)
        except OSError:
            return  # ENXIO: only a hole is left
        place = os.lseek(handle, begin, os.SEEK_HOLE)
        for number in range(max(last + 1, begin // CHUNK_BYTES), (place - 1) // CHUNK_BYTES + 1):
            yield number
            last = number
