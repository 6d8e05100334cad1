"""sha256 of files and trees, in the format of sha256sum(1), so that `sha256sum --check` proves a backup without us."""

import ctypes
import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tasks.drivers.chunks import read_chunks, verify_chunks
from tasks.errors import IntegrityError, StoreError
from tasks.model.manifest import FileRecord

CHUNK = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPENAT2, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 437, 0x04, 0x08
"""linux/openat2.h; the number is the same on all architectures."""
_libc = ctypes.CDLL(None, use_errno=True)
_SHA256 = re.compile(rb"[0-9a-f]{64}")
_PLAIN = re.compile(rb"[0-9a-f]{64}  (?!\./-\n)(.+)\n").fullmatch
"""Most lines of a listing: nothing is escaped in them."""


def sha256_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """The hex sha256 of a regular file's content; `on_bytes` is called with the size of each piece read."""
    return sha256_of(os.open(path, _READ), on_bytes)


def sha256_of(handle: int, on_bytes: Callable[[int], None] | None = None) -> str:
    """The hex sha256 of what is left to read of an open file, which is closed; `on_bytes` as `sha256_file`."""
    digest = hashlib.sha256()
    try:
        # Of 100,000 files most are small: a buffer of 1 MiB for each would take longer than reading it.
        buffer = bytearray(min(CHUNK, os.fstat(handle).st_size + 1))
        while size := os.readv(handle, [buffer]):
            digest.update(memoryview(buffer)[:size])
            if on_bytes is not None:
                on_bytes(size)
    finally:
        os.close(handle)
    return digest.hexdigest()


def record(path: Path, folder: Path) -> FileRecord:
    """The FileRecord of `path`, named relative to `folder`."""
    return FileRecord(path=str(path.relative_to(folder)), size_bytes=path.stat().st_size, sha256=sha256_file(path))


def verify_record(
    folder: Path, file: FileRecord, count: Callable[[int], None] = lambda _: None, *, percent: float = 100
) -> None:
    """IntegrityError unless a file below `folder` is as its record says; `count` is told the bytes as they are read.

    StoreError when it cannot be read: that is no damage.
    """
    try:
        _verify(folder, file, count, percent)
    except OSError as exc:
        raise StoreError(str(folder / file.path), f"cannot be read: {exc.strerror}") from exc


def _verify(folder: Path, file: FileRecord, count: Callable[[int], None], percent: float) -> None:
    path = folder / file.path
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        found = f"{path.stat().st_size} bytes" if path.is_file() else "nothing"
        raise IntegrityError(str(path), f"{file.size_bytes} bytes", found)
    if path.is_symlink():
        raise IntegrityError(str(path), "a file", "a symbolic link")
    if file.chunks is not None:
        verify_chunks(path, read_chunks(folder / file.chunks), count, percent=percent)
    elif (found := sha256_file(path)) != file.sha256:
        raise IntegrityError(str(path), str(file.sha256), found)
    else:
        count(file.size_bytes)


class _OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _open_below(folder: int, path: bytes) -> int:
    how = _OpenHow(_FOLDER | os.O_NOFOLLOW, 0, _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH)
    handle: int = _libc.syscall(_OPENAT2, folder, path, ctypes.byref(how), ctypes.sizeof(how))
    if handle < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return handle


@contextmanager
def opened(root: Path | bytes, below: int | None = None) -> Iterator[int]:
    """A folder to name files from: a client's longest paths have no room for that of the store in front of them.

    Below another one no link is followed, not on the way either: a client's links lead to files of this server.
    """
    handle = os.open(root, _FOLDER) if below is None else _open_below(below, os.fsencode(root))
    try:
        yield handle
    finally:
        os.close(handle)


def read_below(root: Path, name: str, most_bytes: int) -> bytes | None:
    """The first bytes of a regular file below a root; None when there is none. No link is followed on the way."""
    folder, _, last = os.fsencode(name).rpartition(b"/")
    try:
        with opened(root) as top, opened(folder or b".", top) as parent:
            handle = os.open(last, _READ | os.O_NONBLOCK, dir_fd=parent)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EXDEV):
            return None
        raise
    with open(handle, "rb") as file:
        return file.read(most_bytes) if stat.S_ISREG(os.fstat(handle).st_mode) else None


class Entry(NamedTuple):
    """What is in a tree and is no folder: path from the root, inode, bytes if it is a regular file, bytes on disk."""

    path: bytes
    inode: int
    size_bytes: int | None
    allocated_bytes: int
    known: bool
    """It is the same inode as its namesake in the tree before."""


def walk(root: int, last: int | None = None) -> Iterator[list[Entry]]:
    """Folder by folder, sorted, what is below an `opened` one; `last` is the tree before. Links are not followed."""
    pending = [b""]
    while pending:
        below = pending.pop()
        front = below and below + b"/"
        folders, found = [], []
        before = {} if last is None else folder_inodes(last, below)
        with opened(below or b".", root) as folder, os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = front + os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                    continue
                state, inode = entry.stat(follow_symlinks=False), entry.inode()
                size_bytes = state.st_size if stat.S_ISREG(state.st_mode) else None
                found.append(Entry(path, inode, size_bytes, state.st_blocks * 512, before.get(entry.name) == inode))
        yield found
        pending.extend(reversed(folders))


def folder_inodes(root: int, below: bytes) -> dict[str, int]:
    """The inodes of what is in a folder and is no folder, by name; nothing when there is no such folder.

    As the folder has them: a stat of each would take longer than all else.
    """
    try:
        with opened(below or b".", root) as folder, os.scandir(folder) as entries:
            return {entry.name: entry.inode() for entry in entries if not entry.is_dir(follow_symlinks=False)}
    except OSError:
        return {}


def listing_line(sha256: str, path: bytes) -> bytes:
    """A line of sha256sum(1): names with a backslash or a line break are escaped and the line starts with one."""
    path = b"./-" if path == b"-" else path  # a lone dash would be standard input to sha256sum --check
    escaped = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != path else b"") + sha256.encode() + b"  " + escaped + b"\n"


def parse_listing_line(line: bytes) -> tuple[str, bytes]:
    """The sha256 and the path of a line; ValueError when it is not one."""
    escaped = line.startswith(b"\\")
    sha256, separator, path = line.removeprefix(b"\\").rstrip(b"\n").partition(b"  ")
    if not separator or not _SHA256.fullmatch(sha256) or not line.endswith(b"\n"):
        raise ValueError(f"not a line of sha256sum: {line[:80]!r}")
    if escaped:
        path = path.replace(b"\\\\", b"\0").replace(b"\\n", b"\n").replace(b"\\r", b"\r").replace(b"\0", b"\\")
    return sha256.decode(), b"-" if path == b"./-" else path


class Listed(NamedTuple):
    """How many files were listed and their bytes; and what is not an inode of the previous tree.

    Of that the allocated bytes (holes are not), the inodes (folders are always new ones), and the paths of all but
    folders, which are None when there was no previous tree.
    """

    files: int
    size_bytes: int
    new_bytes: int
    new_inodes: int
    fresh: list[bytes] | None


def write_listing(root: Path, listing: Path, previous_root: Path | None, previous: Path | None) -> Listed:
    """Write the sha256 of every regular file of `root` to `listing`.

    A file that is the same inode as its namesake below `previous_root` keeps the line of the `previous` listing: what
    is published is never modified, so it need not be read again.
    """
    lines = _lines_by_path(previous) if previous_root and previous and previous.exists() else {}
    count = size_bytes = new_bytes = new_inodes = 0
    fresh: list[bytes] = []
    with listing.open("wb") as out, opened(root) as new, ExitStack() as stack:
        last = stack.enter_context(opened(previous_root)) if previous_root and previous_root.exists() else None
        if last is not None and os.fstat(last).st_dev != os.fstat(new).st_dev:
            last = None
        for entries in walk(new, last):
            new_inodes += bool(entries)
            for path, _, file_bytes, allocated_bytes, known in entries:
                if not known:
                    new_inodes, new_bytes = new_inodes + 1, new_bytes + allocated_bytes
                    if last is not None:
                        fresh.append(path)
                if file_bytes is not None:
                    line = lines.get(path) if known else None
                    out.write(line or listing_line(sha256_of(os.open(path, _READ, dir_fd=new)), path))
                    count, size_bytes = count + 1, size_bytes + file_bytes
        out.flush()
        os.fsync(out.fileno())
    return Listed(count, size_bytes, new_bytes, new_inodes, fresh if last is not None else None)


def _lines_by_path(listing: Path) -> dict[bytes, bytes]:
    with listing.open("rb") as lines:
        try:
            return {found[1] if (found := _PLAIN(line)) else parse_listing_line(line)[1]: line for line in lines}
        except ValueError:
            return {}  # damaged: everything is read again


def verify_listing(root: Path, listing: Path, on_progress: Callable[[int], None] | None = None) -> None:
    """Raise IntegrityError for the first file below `root` that is missing or not as `listing` says, or for `listing`.

    StoreError when one cannot be read: that is no damage. `on_progress` is told the bytes read so far.
    """
    done = 0
    with listing.open("rb") as lines, opened(root) as folder:
        for line in lines:
            try:
                expected, name = parse_listing_line(line)
            except ValueError as exc:
                raise IntegrityError(str(listing), "lines of sha256sum", repr(line[:80])) from exc
            path = root / os.fsdecode(name)
            try:
                found = sha256_of(os.open(name, _READ, dir_fd=folder))
                done += os.stat(name, dir_fd=folder).st_size
            except OSError as exc:
                if exc.errno in (errno.EIO, errno.ESTALE):
                    raise StoreError(str(path), f"cannot be read: {exc.strerror}") from exc
                raise IntegrityError(str(path), expected, exc.strerror or "nothing") from exc
            if found != expected:
                raise IntegrityError(str(path), expected, found)
            if on_progress is not None:
                on_progress(done)
