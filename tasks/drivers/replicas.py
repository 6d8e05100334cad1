"""Replicas in the permanent store: each published folder of the store copied there once, read back, published whole.

What is written is read again from the far end before it counts. A replica grows in a `.partial-` folder, which the next
try goes on with. Of an increment, the far file system shares what its parent's replica has already where it can
(FICLONE; over NFSv4.2 CLONE): such chunks are not read again here, but by `replica_check`. Nothing is removed because
the store does not have it any more.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.drivers import process
from tasks.drivers.chunks import CHUNK_BYTES, read_chunks, with_data
from tasks.drivers.digest import sha256_file
from tasks.drivers.permanent import PermanentPlace, at, prove, watching
from tasks.drivers.proven_copy import Digests, copy_chunks, copy_file, sha256_far
from tasks.drivers.space import require_space
from tasks.drivers.store import publish, read_model, remove, sync_folder, write_model
from tasks.errors import IntegrityError
from tasks.model.manifest import MANIFEST, DeviceManifest, FileRecord
from tasks.model.replica import DEVICES, IMAGES, MODELS, SERVER, TEMPLATES, Kind, Original

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
OnProgress = Callable[[int, int | None], None]


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
    reserve_bytes: int = 0,
) -> int | None:
    """Make the replica of `original` unless it is there (None); the bytes that were written, at most so many a second.

    It goes into the permanent store `place`, or `into` a folder when the original lies in there, where `reserve_bytes`
    must be left. Raises IntegrityError when the original or what was read back is not what the manifest says, or when
    another replica is in its place, which stays; StoreFull, StoreSilent, StoreNotMounted.
    """
    root = into or place.path
    prove(place)
    if at(place, _is_there, root, original):
        return None
    parts = at(place, _begin, root, original, reserve_bytes)
    total, done, written = sum(part.size_bytes for part in parts), 0, 0
    partial = _partial(root, original)
    for part in parts:
        for some in _batches(part):
            began, wrote = time.monotonic(), at(place, _write, original.folder, partial, some)
            written, done = written + wrote, done + some.size_bytes
            if on_progress is not None:
                on_progress(done, total)
            if bytes_per_s is not None:
                time.sleep(max(0.0, wrote / bytes_per_s - (time.monotonic() - began)))
    prove(place)
    at(place, _publish, root, original)
    return written


def forget_partial(place: PermanentPlace, folder: str, wanted: set[str]) -> None:
    """Remove what grew in `folder` of the store and is none of the `wanted` ids any more."""
    for left in at(place, _left, place.path / folder):
        if left.name.removeprefix(PARTIAL) not in wanted:
            remove(left, watching(place))


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
    ours, theirs = read_model(manifest, MODELS[original.kind]), read_model(replica, MODELS[original.kind])
    if ours == theirs:
        return True  # one of them is older than seals are
    if isinstance(ours, DeviceManifest) and theirs and (ours.id, ours.files) == (theirs.id, theirs.files):
        write_model(replica, ours)
        return True
    raise IntegrityError(str(replica), f"the manifest of {original.folder}", "another")


def _begin(root: Path, original: Original, reserve_bytes: int) -> list[_Part]:
    """Make its folder, clone what is there already, find room; what is to be written."""
    partial = _partial(root, original)
    resumed = partial.exists()
    (root / Path(original.place).parts[0]).mkdir(exist_ok=True, mode=0o700)
    partial.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in original.others:
        copy_file(original.folder / name, partial / name, sha256_file(original.folder / name))
    if original.twin is not None and _same_manifest(root / original.twin, original.folder):
        for file in original.files:
            (partial / file.path).unlink(missing_ok=True)  # a first try may have begun to copy it
            os.link(root / original.twin / file.path, partial / file.path)
        return []
    parts = [_part(root, original, file, partial, resumed) for file in original.files]
    require_space(partial, 0 if resumed else sum(part.size_bytes for part in parts), reserve_bytes)
    return parts


def _same_manifest(replica: Path, folder: Path) -> bool:
    manifest = replica / MANIFEST
    return manifest.exists() and manifest.read_bytes() == (folder / MANIFEST).read_bytes()


def _part(root: Path, original: Original, file: FileRecord, partial: Path, resumed: bool) -> _Part:
    if file.chunks is None:
        return _Part(file, None, resumed)
    target, note = partial / file.path, partial / f".{file.path}{_CLONED_FROM}"
    if not target.exists():
        note.unlink(missing_ok=True)
        _grow(root, original.parent, file, partial, note)
    wanted, known = read_chunks(original.folder / file.chunks), _known(root, file, note)
    doubt = resumed or note.exists()
    numbers = {*wanted}
    if known is not None:
        numbers = {number for number in {*wanted, *known} if wanted.get(number) != known.get(number)}
        numbers = {number for number in numbers if number * CHUNK_BYTES < file.size_bytes}
    elif doubt:  # what is not listed must be zero
        with target.open("rb") as there:
            numbers |= {*with_data(there.fileno(), file.size_bytes)}
    return _Part(file, {number: wanted.get(number) for number in sorted(numbers)}, doubt)


def _grow(root: Path, parent: str | None, file: FileRecord, partial: Path, note: Path) -> None:
    """Make the file: a clone of the parent's, and a note of that, or empty; on disk before it has its name."""
    growing = partial / f".{file.path}"
    growing.unlink(missing_ok=True)
    basis = root / parent if parent is not None else None
    cloned = basis is not None and (basis / MANIFEST).exists() and _clone(basis / file.path, growing)
    handle = os.open(growing, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(handle, 0o600)
        os.ftruncate(handle, file.size_bytes)
        os.fsync(handle)
    finally:
        os.close(handle)
    if cloned:
        with note.open("w") as text:
            text.write(str(parent))
            text.flush()
            os.fsync(text.fileno())
    growing.rename(partial / file.path)
    sync_folder(partial)


def _clone(source: Path, target: Path) -> bool:
    """Whether the file system could share what it has; a copy by way of this machine would be no gain."""
    argv = ["cp", "--reflink=always", "--", str(source), str(target)]
    return process.run(argv, deadline_s=CLONE_DEADLINE_S, accept=lambda _: True).status == 0


def _known(root: Path, file: FileRecord, note: Path) -> Mapping[int, str] | None:
    """What the chunks of a clone were in what it was cloned from, if that is still there."""
    if not note.exists():
        return None
    basis = root / note.read_text()
    listing = basis / str(file.chunks)
    return read_chunks(listing) if (basis / MANIFEST).exists() and listing.exists() else None


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
    return copy_chunks(source, target, part.file.size_bytes, part.chunks, doubt=part.doubt)


def _publish(root: Path, original: Original) -> None:
    partial = _partial(root, original)
    for note in partial.glob(f".*{_CLONED_FROM}"):
        note.unlink()
    manifest = original.folder / MANIFEST
    copy_file(manifest, partial / MANIFEST, sha256_file(manifest))
    publish(partial, root / original.place)
