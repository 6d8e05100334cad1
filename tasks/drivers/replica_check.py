"""A replica read again where it lies, against its manifest; its original heals what is damaged.

It works the other way round, too: `folder` may be the original, and `good` its replica.
"""

import os
import random
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.drivers.chunks import CHUNK_BYTES, digest_of, read_chunks, with_data
from tasks.drivers.digest import sha256_file
from tasks.drivers.permanent import PermanentPlace, at
from tasks.drivers.replicas import AT_A_TIME, OnProgress, copy_chunks, copy_file, sha256_far
from tasks.drivers.store import read_model
from tasks.drivers.thin_file import ThinFile
from tasks.errors import GbsError, IntegrityError
from tasks.model.manifest import MANIFEST, DeviceManifest, FileRecord, ImageManifest, ServerManifest
from tasks.model.replica import Kind

WHOLE = 100
MODELS: dict[Kind, type[ImageManifest | DeviceManifest | ServerManifest]] = {
    "image": ImageManifest,
    "template": ImageManifest,
    "device": DeviceManifest,
    "server": ServerManifest,
}


@dataclass(frozen=True)
class Checked:
    """What a reading found: the files that were damaged, and which of them are healed."""

    read_bytes: int = 0
    damaged: tuple[str, ...] = ()
    healed: tuple[str, ...] = ()

    @property
    def left(self) -> tuple[str, ...]:
        """What stays damaged."""
        return tuple(path for path in self.damaged if path not in self.healed)

    def __add__(self, other: "Checked") -> "Checked":
        damaged = tuple(dict.fromkeys((*self.damaged, *other.damaged)))
        left = {*self.left, *other.left}
        healed = tuple(path for path in damaged if path not in left)
        return Checked(self.read_bytes + other.read_bytes, damaged, healed)


def check(
    place: PermanentPlace,
    kind: Kind,
    folder: Path,
    good: Path | None,
    percent: float = WHOLE,
    on_progress: OnProgress | None = None,
) -> Checked:
    """Read the files of `folder`, of its disks `percent` of the chunks by chance; heal what is damaged from `good`.

    One of the two lies in the permanent store `place`. Nothing is taken from `good` that has not the sha256 that the
    manifest says. Raises StoreSilent and the other errors of a store that cannot be asked.
    """
    files, found = at(place, _files, kind, folder, good)
    for file in files:
        if file.chunks is None:
            found += at(place, _check_file, folder, file, good)
    total = sum(file.size_bytes for file in files)
    for file in files:
        if file.chunks is None or file.chunks in found.left:
            continue
        numbers, sized = at(place, _chunks, folder, file, good)
        found += sized
        if percent < WHOLE and numbers:
            numbers = sorted(random.sample(numbers, max(1, round(len(numbers) * percent / WHOLE))))
        for begin in range(0, len(numbers), AT_A_TIME):
            found += at(place, _check_chunks, folder, file, numbers[begin : begin + AT_A_TIME], good)
            if on_progress is not None:
                on_progress(found.read_bytes, total if percent == WHOLE else None)
    return found


def _files(kind: Kind, folder: Path, good: Path | None) -> tuple[tuple[FileRecord, ...], Checked]:
    """What the manifest lists; a manifest that cannot be read is healed first."""
    with suppress(IntegrityError):
        if (manifest := read_model(folder / MANIFEST, MODELS[kind])) is not None:
            return manifest.files, Checked()
    damaged = Checked(damaged=(MANIFEST,))
    if good is None:
        return (), damaged
    try:
        manifest = read_model(good / MANIFEST, MODELS[kind])
        if manifest is None:
            return (), damaged
        _put(good / MANIFEST, folder / MANIFEST, sha256_file(good / MANIFEST))
    except (OSError, GbsError):
        return (), damaged
    return manifest.files, Checked(damaged=(MANIFEST,), healed=(MANIFEST,))


def _check_file(folder: Path, file: FileRecord, good: Path | None) -> Checked:
    path, sha256 = folder / file.path, str(file.sha256)
    with suppress(OSError):
        if sha256_far(path) == sha256:
            return Checked(file.size_bytes)
    healed = False
    with suppress(OSError, GbsError):
        if good is not None and sha256_file(good / file.path) == sha256:
            _put(good / file.path, path, sha256)
            healed = True
    return Checked(file.size_bytes, (file.path,), (file.path,) if healed else ())


def _put(source: Path, target: Path, sha256: str) -> None:
    """Put a good copy in the place of a file, in one step."""
    growing = target.with_name(f".{target.name}.heal")
    with suppress(FileNotFoundError):
        growing.unlink()
    copy_file(source, growing, sha256)
    growing.rename(target)


def _chunks(folder: Path, file: FileRecord, good: Path | None) -> tuple[list[int], Checked]:
    """The chunks of a disk that are listed or not holes; one of another size is damaged, and gets its size back."""
    path = folder / file.path
    listed = read_chunks(folder / str(file.chunks))
    try:
        resized = path.stat().st_size != file.size_bytes
    except FileNotFoundError:
        resized = True
    if resized and good is None:
        return [], Checked(damaged=(file.path,))
    if resized:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        os.truncate(path, file.size_bytes)
    with path.open("rb") as disk:
        numbers = sorted({*listed, *with_data(disk.fileno(), file.size_bytes)})
    return numbers, Checked(damaged=(file.path,), healed=(file.path,)) if resized else Checked()


def _check_chunks(folder: Path, file: FileRecord, numbers: Sequence[int], good: Path | None) -> Checked:
    path, listed = folder / file.path, read_chunks(folder / str(file.chunks))
    bad = []
    with closing(ThinFile(path)) as disk:
        os.posix_fadvise(disk.handle, 0, 0, os.POSIX_FADV_DONTNEED)
        for number in numbers:
            try:
                found = digest_of(os.pread(disk.handle, CHUNK_BYTES, number * CHUNK_BYTES))
            except OSError:
                found = "unreadable"
            if found != listed.get(number):
                bad.append(number)
    size_bytes = len(numbers) * CHUNK_BYTES
    if not bad:
        return Checked(size_bytes)
    healed = False
    with suppress(OSError, GbsError):
        if good is not None:
            copy_chunks(good / file.path, path, {number: listed.get(number) for number in bad}, doubt=True)
            healed = True
    return Checked(size_bytes, (file.path,), (file.path,) if healed else ())
