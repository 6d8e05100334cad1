"""Copies that are read back from the file system before they count, by file and by chunk."""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from mmap import mmap
from pathlib import Path

from tasks.drivers.chunks import CHUNK_BYTES, digest_of
from tasks.drivers.digest import sha256_file
from tasks.drivers.thin_file import PIECE_BYTES, ThinFile
from tasks.errors import GbsError, IntegrityError

Digests = Mapping[int, str | None]
"""The sha256 of chunks by their numbers; None of one that is all zero."""
HEALING = ".heal"
"""At the end of the name of what `put` makes."""
_ZEROS = bytes(PIECE_BYTES)


def copy_file(source: Path, target: Path, sha256: str) -> None:
    """Copy a file whose sha256 is known, flush it and read it back; IntegrityError when either has another."""
    digest = hashlib.sha256()
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with source.open("rb") as content, open(handle, "wb") as copied:
        while piece := content.read(CHUNK_BYTES):
            digest.update(piece)
            copied.write(piece)
        copied.flush()
        os.fsync(copied.fileno())
    if digest.hexdigest() != sha256:
        raise IntegrityError(str(source), sha256, digest.hexdigest())
    if (found := sha256_far(target)) != sha256:
        raise IntegrityError(str(target), sha256, found)


def put(source: Path, target: Path) -> bool:
    """Put a good copy in the place of a file, in one step; whether that could be done."""
    growing = target.with_name(f".{target.name}{HEALING}")
    try:
        copy_file(source, growing, sha256_file(source))
        growing.rename(target)
    except (OSError, GbsError):
        return False
    finally:
        growing.unlink(missing_ok=True)
    return True


def sha256_far(path: Path) -> str:
    """The sha256 of what the file system has of a file that is flushed, not of what lies in this machine's memory."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
    return sha256_file(path)


def copy_chunks(source: Path, target: Path, size_bytes: int, chunks: Digests, *, doubt: bool) -> int:
    """Copy chunks of a file of that size to one that exists, flush it and read them back; the bytes that were written.

    With `doubt`, a chunk that is there already is not written. IntegrityError when one of the source or what was read
    back is not as listed.
    """
    written: list[int] = []
    with source.open("rb") as original, closing(ThinFile(target)) as thin:
        buffer = memoryview(mmap(-1, CHUNK_BYTES))  # whole pages, as writes past the page cache want them
        if doubt:
            os.posix_fadvise(thin.handle, 0, 0, os.POSIX_FADV_DONTNEED)
        for number, expected in chunks.items():
            offset = number * CHUNK_BYTES
            content = buffer[: min(CHUNK_BYTES, size_bytes - offset)]
            if (read := os.preadv(original.fileno(), [content], offset)) != len(content):
                raise IntegrityError(f"{source}, chunk {number}", f"{len(content)} bytes", f"{read}")
            _require(source, number, digest_of(content), expected)
            if doubt and digest_of(os.pread(thin.handle, len(content), offset)) == expected:
                continue
            thin.write_thin(content, offset, _zeros_in(content), punch=doubt)
            written.append(number)
        os.fsync(thin.handle)
        os.posix_fadvise(thin.handle, 0, 0, os.POSIX_FADV_DONTNEED)
        for number in written:
            offset = number * CHUNK_BYTES
            found = digest_of(os.pread(thin.handle, min(CHUNK_BYTES, size_bytes - offset), offset))
            _require(target, number, found, chunks[number])
    return len(written) * CHUNK_BYTES


def _require(path: Path, number: int, found: str | None, expected: str | None) -> None:
    if found != expected:
        where = f"{path}, chunk {number} of {CHUNK_BYTES} bytes"
        raise IntegrityError(where, expected or "zeros", found or "zeros")


def _zeros_in(content: memoryview) -> Callable[[int, int], bool]:
    return lambda at, length: bytes(content[at : at + length]) == _ZEROS[:length]
