"""A replica read again where it lies, against its manifest; its original heals what is damaged.

It works the other way round, too: `folder` may be the original, and `good` its replica.
"""

import hashlib
import os
import random
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.drivers.chunks import CHUNK_BYTES, digest_of, read_chunks, with_data
from tasks.drivers.permanent import PermanentPlace, at
from tasks.drivers.proven_copy import HEALING, Digests, copy_chunks, put, sha256_far
from tasks.drivers.replicas import AT_A_TIME, OnProgress
from tasks.drivers.store import read_model
from tasks.drivers.thin_file import ThinFile
from tasks.errors import GbsError, IntegrityError
from tasks.model.manifest import MANIFEST, TEMPLATE, FileRecord, TemplateManifest
from tasks.model.replica import MODELS, Kind, Manifest

WHOLE = 100


@dataclass(frozen=True)
class Checked:
    """What a reading found: the files that were damaged, and which of them are healed."""

    read_bytes: int = 0
    damaged: tuple[str, ...] = ()
    healed: tuple[str, ...] = ()
    chunks: frozenset[tuple[str, int]] = frozenset()
    """The damaged chunks of disks, as far as it is some chunks and not the file."""

    @property
    def left(self) -> tuple[str, ...]:
        """What stays damaged."""
        return tuple(path for path in self.damaged if path not in self.healed)

    @property
    def what(self) -> dict[str, str]:
        """The files that were damaged, and a digest of what of each: the same as long as the damage is."""
        chunks: dict[str, list[int]] = {path: [] for path in self.damaged}
        for path, number in sorted(self.chunks):
            chunks[path].append(number)
        return {path: hashlib.sha256(repr(numbers).encode()).hexdigest() for path, numbers in chunks.items()}

    def __add__(self, other: "Checked") -> "Checked":
        damaged = tuple(dict.fromkeys((*self.damaged, *other.damaged)))
        left = {*self.left, *other.left}
        healed = tuple(path for path in damaged if path not in left)
        return Checked(self.read_bytes + other.read_bytes, damaged, healed, self.chunks | other.chunks)


def check(
    place: PermanentPlace,
    kind: Kind,
    folder: Path,
    good: Path | None,
    percent: float = WHOLE,
    on_progress: OnProgress | None = None,
) -> Checked:
    """Read the files of `folder`, of its disks `percent` of the chunks by chance; heal what is damaged from `good`.

    A disk of which something is damaged is read whole. One of the two folders lies in the permanent store `place`.
    Nothing is taken from `good` that has not the sha256 that the manifest says. Raises StoreSilent and the other errors
    of a store that cannot be asked.
    """
    files, found = at(place, _files, kind, folder, good)
    for file in files:
        if file.chunks is None:
            found += at(place, _check_file, folder, file, good)
    total = sum(file.size_bytes for file in files)
    for file in files:
        if file.chunks is None or file.chunks in found.left:
            continue
        chunks, sized = at(place, _chunks, folder, file, good)
        numbers = list(chunks)
        if percent < WHOLE and numbers and not sized.damaged:
            numbers = sorted(random.sample(numbers, max(1, round(len(numbers) * percent / WHOLE))))
        found += sized
        while numbers:
            some, numbers = numbers[:AT_A_TIME], numbers[AT_A_TIME:]
            part = at(place, _check_chunks, folder, file, {number: chunks[number] for number in some}, good)
            if part.damaged and percent < WHOLE and file.path not in found.damaged:
                numbers = list(chunks)  # a sample says no more of it
            found += part
            if on_progress is not None:
                on_progress(found.read_bytes, total if percent == WHOLE else None)
    return found


def _files(kind: Kind, folder: Path, good: Path | None) -> tuple[tuple[FileRecord, ...], Checked]:
    """What the manifest lists; one that is damaged is healed first, and what an interrupted healing left goes."""
    for left in folder.glob(f".*{HEALING}"):
        left.unlink()
    found = _check_template(folder, good) if kind == "template" else Checked()
    manifest, theirs = _manifest(kind, folder), _manifest(kind, good) if good is not None else None
    if manifest is not None and (theirs is None or theirs.files == manifest.files or not _has(folder, theirs)):
        # Two that can be read and differ are not sealed, and nothing tells which of them is damaged.
        apart = theirs is not None and theirs != manifest and kind != "device"
        return manifest.files, found + Checked(damaged=(MANIFEST,) if apart else ())
    healed = theirs is not None and good is not None and put(good / MANIFEST, folder / MANIFEST)
    damaged = Checked(damaged=(MANIFEST,), healed=(MANIFEST,) if healed else ())
    return theirs.files if theirs is not None and healed else (), found + damaged


def _manifest(kind: Kind, folder: Path) -> Manifest | None:
    try:
        return read_model(folder / MANIFEST, MODELS[kind])
    except (IntegrityError, OSError):
        return None


def _has(folder: Path, manifest: Manifest) -> bool:
    """Whether the small files are those of a manifest: so they tell which of two manifests is damaged."""
    return all(_is(folder / file.path, str(file.sha256)) for file in manifest.files if file.chunks is None)


def _check_template(folder: Path, good: Path | None) -> Checked:
    """What its manifest, that of the image, does not list."""
    with suppress(IntegrityError, OSError):
        if read_model(folder / TEMPLATE, TemplateManifest) is not None:
            return Checked()
    healed = False
    with suppress(IntegrityError, OSError):
        if good is not None and read_model(good / TEMPLATE, TemplateManifest) is not None:
            healed = put(good / TEMPLATE, folder / TEMPLATE)
    return Checked(damaged=(TEMPLATE,), healed=(TEMPLATE,) if healed else ())


def _check_file(folder: Path, file: FileRecord, good: Path | None) -> Checked:
    path, sha256 = folder / file.path, str(file.sha256)
    if _is(path, sha256):
        return Checked(file.size_bytes)
    healed = good is not None and _is(good / file.path, sha256) and put(good / file.path, path)
    return Checked(file.size_bytes, (file.path,), (file.path,) if healed else ())


def _is(path: Path, sha256: str) -> bool:
    try:
        return sha256_far(path) == sha256
    except OSError:
        return False


def _chunks(folder: Path, file: FileRecord, good: Path | None) -> tuple[dict[int, str | None], Checked]:
    """The chunks of a disk that are listed or not holes; one of another size is damaged, and gets its size back."""
    path = folder / file.path
    listed = read_chunks(folder / str(file.chunks))
    try:
        resized = path.stat().st_size != file.size_bytes
    except FileNotFoundError:
        resized = True
    if resized and good is None:
        return {}, Checked(damaged=(file.path,))
    if resized:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        os.truncate(path, file.size_bytes)
    with path.open("rb") as disk:
        numbers = sorted({*listed, *with_data(disk.fileno(), file.size_bytes)})
    found = Checked(damaged=(file.path,), healed=(file.path,)) if resized else Checked()
    return {number: listed.get(number) for number in numbers}, found


def _check_chunks(folder: Path, file: FileRecord, chunks: Digests, good: Path | None) -> Checked:
    path, bad = folder / file.path, list[int]()
    with closing(ThinFile(path)) as disk:
        os.posix_fadvise(disk.handle, 0, 0, os.POSIX_FADV_DONTNEED)
        for number, expected in chunks.items():
            try:
                found = digest_of(os.pread(disk.handle, CHUNK_BYTES, number * CHUNK_BYTES))
            except OSError:
                found = "unreadable"
            if found != expected:
                bad.append(number)
    size_bytes = len(chunks) * CHUNK_BYTES
    if not bad:
        return Checked(size_bytes)
    healed = False
    with suppress(OSError, GbsError):
        if good is not None:
            wanted = {number: chunks[number] for number in bad}
            copy_chunks(good / file.path, path, file.size_bytes, wanted, doubt=True)
            healed = True
    where = frozenset((file.path, number) for number in bad)
    return Checked(size_bytes, (file.path,), (file.path,) if healed else (), where)
