"""Replicas in the permanent store: each published folder of the store copied there once, read back, published whole.

What is written is read again from the far end before it counts. A replica grows in a `.partial-` folder, which the next
try goes on with; of an increment, what its parent's replica has already is cloned there (FICLONE or, over NFSv4.2, the
server's own copy: cp(1) asks for both). Nothing is removed because the store does not have it any more.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

from tasks.drivers import process
from tasks.drivers.chunks import CHUNK_BYTES, digest_of, read_chunks, with_data
from tasks.drivers.digest import sha256_file
from tasks.drivers.permanent import PermanentPlace, at, prove, watching
from tasks.drivers.store import publish, read_model, remove, require_space, write_model
from tasks.drivers.thin_file import PIECE_BYTES, ThinFile
from tasks.errors import IntegrityError
from tasks.model.manifest import MANIFEST, DeviceManifest, FileRecord
from tasks.model.replica import DEVICES, IMAGES, SERVER, TEMPLATES, Kind, Original

PARTIAL = ".partial-"
AT_A_TIME = 16
"""So many chunks are written, flushed and read back by one call: what a cut link costs, and how often is said."""
CLONE_DEADLINE_S = 6 * 3600
_PLACES: dict[Kind, tuple[str, str]] = {
    "image": (IMAGES, "*/*/*"),
    "template": (TEMPLATES, "*/*"),
    "device": (DEVICES, "*/*"),
    "server": (SERVER, "*/*"),
}
_CLONED_FROM = ".cloned-from"
_ZEROS = bytes(PIECE_BYTES)
OnProgress = Callable[[int, int | None], None]
Digests = dict[int, str | None]
"""The sha256 of chunks by their numbers; None of one that is all zero."""


@dataclass(frozen=True)
class _Part:
    """What is to be written of one file: all of it, or those chunks; `doubt`: some of it may be there already."""

    file: FileRecord
    chunks: Digests | None
    doubt: bool

    @property
    def size_bytes(self) -> int:
        return self.file.size_bytes if self.chunks is None else len(self.chunks) * CHUNK_BYTES


def replicate(
    place: PermanentPlace,
    original: Original,
    bytes_per_s: int | None = None,
    on_progress: OnProgress | None = None,
    *,
    into: Path | None = None,
) -> int | None:
    """Make the replica of `original` unless it is there (None); the bytes that were written, at most so many a second.

    It goes into the permanent store `place`, or `into` a folder when the original lies in there. Raises IntegrityError
    when the original or what was read back is not what the manifest says, or when another replica is in its place,
    which stays; StoreFull, StoreSilent, StoreNotMounted.
    """
    root = into or place.path
    prove(place)
    if at(place, _is_there, root, original):
        return None
    parts = at(place, _begin, root, original)
    total, done, written, began = sum(part.size_bytes for part in parts), 0, 0, time.monotonic()
    partial = _partial(root, original)
    for part in parts:
        for some in _batches(part):
            written += at(place, _write, original.folder, partial, some)
            done += some.size_bytes
            if on_progress is not None:
                on_progress(done, total)
            if bytes_per_s is not None:
                time.sleep(max(0.0, written / bytes_per_s - (time.monotonic() - began)))
    prove(place)
    at(place, _publish, root, original)
    return written


def forget_partial(place: PermanentPlace, folder: str, wanted: set[str]) -> None:
    """Remove what grew in `folder` of the store and is none of the `wanted` ids any more."""
    for left in at(place, _left, place.path / folder):
        if left.name.removeprefix(PARTIAL) not in wanted:
            remove(left, watching(place))


def keep_newest(place: PermanentPlace, folder: str, count: int) -> None:
    """Remove all but the newest replicas in `folder` of the store, by their ids."""
    for doomed in at(place, _beyond, place.path / folder, count):
        remove(doomed, watching(place))


def _beyond(folder: Path, count: int) -> list[Path]:
    """Those to be removed, out of sight: half removed, they must not look like a backup."""
    old = sorted((path.parent for path in folder.glob(f"[!.]*/{MANIFEST}")), reverse=True)[count:]
    return [*folder.glob(".delete-*"), *(path.rename(path.with_name(f".delete-{path.name}")) for path in old)]


def published(root: Path) -> dict[str, Kind]:
    """What replicas there are: their places below the permanent store, and what they are."""
    return {
        path.parent.relative_to(root).as_posix(): kind
        for kind, (top, below) in _PLACES.items()
        for path in sorted(root.glob(f"{top}/{below}/{MANIFEST}"))
        if not path.parent.name.startswith(".")
    }


def _left(folder: Path) -> list[Path]:
    return list(folder.glob(f"{PARTIAL}*"))


def _partial(root: Path, original: Original) -> Path:
    final = root / original.place
    return final.with_name(PARTIAL + final.name)


def _is_there(root: Path, original: Original) -> bool:
    """Whether its replica is published; of a device's configuration, it is then told when that was last seen."""
    replica, manifest = root / original.place / MANIFEST, original.folder / MANIFEST
    if not replica.exists():
        return False
    if replica.read_bytes() == manifest.read_bytes():
        return True
    if original.kind == "device":
        ours, theirs = read_model(manifest, DeviceManifest), read_model(replica, DeviceManifest)
        if ours and theirs and (ours.id, ours.files) == (theirs.id, theirs.files):
            write_model(replica, ours)
            return True
    raise IntegrityError(str(replica), f"the manifest of {original.folder}", "another")


def _begin(root: Path, original: Original) -> list[_Part]:
    """Make its folder, clone what is there already, find room; what is to be written."""
    partial = _partial(root, original)
    resumed = partial.exists()
    (root / Path(original.place).parts[0]).mkdir(exist_ok=True, mode=0o700)
    partial.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in original.others:
        shutil.copyfile(original.folder / name, partial / name)
    if original.twin is not None and _same_manifest(root / original.twin, original.folder):
        for file in original.files:
            if not (partial / file.path).exists():
                os.link(root / original.twin / file.path, partial / file.path)
        return []
    basis = _basis(root, original, partial)
    parts = [_part(original.folder, file, partial, basis, resumed) for file in original.files]
    require_space(partial, 0 if resumed else sum(part.size_bytes for part in parts), 0)
    return parts


def _same_manifest(replica: Path, folder: Path) -> bool:
    manifest = replica / MANIFEST
    return manifest.exists() and manifest.read_bytes() == (folder / MANIFEST).read_bytes()


def _basis(root: Path, original: Original, partial: Path) -> Path | None:
    """The replica that this one's disks are clones of; what a first try has chosen stays chosen."""
    note = partial / _CLONED_FROM
    if not note.exists() and any(partial.iterdir()):
        return None
    place = note.read_text() if note.exists() else original.parent
    if place is None or not (root / place / MANIFEST).exists():
        return None
    note.write_text(place)
    return root / place


def _part(folder: Path, file: FileRecord, partial: Path, basis: Path | None, resumed: bool) -> _Part:
    if file.chunks is None:
        return _Part(file, None, resumed)
    target, wanted = partial / file.path, read_chunks(folder / file.chunks)
    known = read_chunks(basis / file.chunks) if basis and (basis / file.chunks).exists() else None
    if not target.exists():
        growing = partial / f".{file.path}"
        growing.unlink(missing_ok=True)
        if basis and known is not None:
            argv = ["cp", "--reflink=auto", "--", str(basis / file.path), str(growing)]
            process.run(argv, deadline_s=CLONE_DEADLINE_S)
        os.close(os.open(growing, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.truncate(growing, file.size_bytes)
        growing.rename(target)
    if known is not None:
        numbers = {number for number in {*wanted, *known} if wanted.get(number) != known.get(number)}
        numbers = {number for number in numbers if number * CHUNK_BYTES < file.size_bytes}
    else:
        numbers = {*wanted}
        if resumed:  # a clone whose basis is gone, too: what is not listed must be zero
            with target.open("rb") as there:
                numbers |= {*with_data(there.fileno(), file.size_bytes)}
    return _Part(file, {number: wanted.get(number) for number in sorted(numbers)}, resumed or known is not None)


def _batches(part: _Part) -> Iterator[_Part]:
    """The part in pieces for one call each."""
    if part.chunks is None:
        yield part
        return
    rows = list(part.chunks.items())
    for begin in range(0, len(rows), AT_A_TIME):
        yield _Part(part.file, dict(rows[begin : begin + AT_A_TIME]), part.doubt)


def _write(folder: Path, partial: Path, part: _Part) -> int:
    """Write it and read it back; the bytes that were written."""
    source, target = folder / part.file.path, partial / part.file.path
    if part.chunks is None:
        if part.doubt and target.exists() and sha256_far(target) == part.file.sha256:
            return 0
        copy_file(source, target, str(part.file.sha256))
        return part.file.size_bytes
    return copy_chunks(source, target, part.chunks, doubt=part.doubt)


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


def sha256_far(path: Path) -> str:
    """The sha256 of what the file system has of a file that is flushed, not of what lies in this machine's memory."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
    return sha256_file(path)


def copy_chunks(source: Path, target: Path, chunks: Mapping[int, str | None], *, doubt: bool) -> int:
    """Copy chunks to a file that exists, flush it and read them back; the bytes that were written.

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
            content = buffer[: os.preadv(original.fileno(), [buffer], offset)]
            _require(source, number, digest_of(content), expected)
            if doubt and digest_of(os.pread(thin.handle, len(content), offset)) == expected:
                continue
            thin.write_thin(content, offset, _zeros_in(content), punch=doubt)
            written.append(number)
        os.fsync(thin.handle)
        os.posix_fadvise(thin.handle, 0, 0, os.POSIX_FADV_DONTNEED)
        for number in written:
            found = digest_of(os.pread(thin.handle, CHUNK_BYTES, number * CHUNK_BYTES))
            _require(target, number, found, chunks[number])
    return len(written) * CHUNK_BYTES


def _require(path: Path, number: int, found: str | None, expected: str | None) -> None:
    if found != expected:
        where = f"{path}, chunk {number} of {CHUNK_BYTES} bytes"
        raise IntegrityError(where, expected or "zeros", found or "zeros")


def _zeros_in(content: memoryview) -> Callable[[int, int], bool]:
    return lambda at, length: bytes(content[at : at + length]) == _ZEROS[:length]


def _publish(root: Path, original: Original) -> None:
    partial = _partial(root, original)
    (partial / _CLONED_FROM).unlink(missing_ok=True)
    manifest = original.folder / MANIFEST
    copy_file(manifest, partial / MANIFEST, sha256_file(manifest))
    publish(partial, root / original.place)
