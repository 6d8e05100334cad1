"""sha256 of files and trees, in the format of sha256sum(1), so that `sha256sum --check` proves a backup without us."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tasks.errors import IntegrityError
from tasks.model.manifest import FileRecord

CHUNK = 1 << 20
_SHA256 = re.compile(rb"[0-9a-f]{64}")


def sha256_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """The hex sha256 of a regular file's content; `on_bytes` is called with the size of each piece read."""
    digest = hashlib.sha256()
    buffer = bytearray(CHUNK)
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(memoryview(buffer)[:size])
            if on_bytes is not None:
                on_bytes(size)
    return digest.hexdigest()


def record(path: Path, folder: Path) -> FileRecord:
    """The FileRecord of `path`, named relative to `folder`."""
    return FileRecord(path=str(path.relative_to(folder)), size_bytes=path.stat().st_size, sha256=sha256_file(path))


def regular_files(root: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Every regular file below `root`, sorted, as its path relative to `root` and its stat; links are not followed."""
    pending = [b""]
    while pending:
        below = pending.pop()
        folders = []
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = os.path.join(below, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_file(follow_symlinks=False):
                    yield path, entry.stat(follow_symlinks=False)
        pending.extend(reversed(folders))


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


def write_listing(root: Path, listing: Path, previous_root: Path | None, previous: Path | None) -> tuple[int, int]:
    """Write the sha256 of every regular file of `root` to `listing`; return their number and their bytes.

    A file that is the same inode as its namesake below `previous_root` keeps the hash of the `previous` listing: what
    is published is never modified, so it need not be read again.
    """
    known = _read_known(previous) if previous_root and previous and previous.exists() else {}
    old = os.fsencode(previous_root) if previous_root else b""
    new, count, size_bytes = os.fsencode(root), 0, 0
    with listing.open("wb") as out:
        for path, status in regular_files(new):
            digest = known.get(path)
            if digest is None or not _same_inode(os.path.join(old, path), status):
                digest = sha256_file(Path(os.fsdecode(os.path.join(new, path))))
            out.write(listing_line(digest, path))
            count, size_bytes = count + 1, size_bytes + status.st_size
        out.flush()
        os.fsync(out.fileno())
    return count, size_bytes


def _read_known(listing: Path) -> dict[bytes, str]:
    with listing.open("rb") as lines:
        try:
            return {path: sha256 for sha256, path in map(parse_listing_line, lines)}
        except ValueError:
            return {}  # damaged: everything is read again


def _same_inode(path: bytes, status: os.stat_result) -> bool:
    try:
        other = os.lstat(path)
    except OSError:
        return False
    return (other.st_ino, other.st_dev) == (status.st_ino, status.st_dev)


def verify_listing(root: Path, listing: Path, on_progress: Callable[[int], None] | None = None) -> None:
    """Raise IntegrityError for the first file below `root` that is missing or not as `listing` says, or for `listing`.

    `on_progress` is told the bytes read so far.
    """
    done = 0
    with listing.open("rb") as lines:
        for line in lines:
            try:
                expected, name = parse_listing_line(line)
            except ValueError as exc:
                raise IntegrityError(str(listing), "lines of sha256sum", repr(line[:80])) from exc
            path = Path(os.fsdecode(os.path.join(os.fsencode(root), name)))
            try:
                found = sha256_file(path)
                done += path.stat().st_size
            except OSError as exc:
                raise IntegrityError(str(path), expected, exc.strerror or "nothing") from exc
            if found != expected:
                raise IntegrityError(str(path), expected, found)
            if on_progress is not None:
                on_progress(done)
