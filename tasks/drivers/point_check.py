"""Restore points read again where they lie: every file against its listing, and a damaged one healed by a good copy.

Points share their unchanged files (hard links): each inode is read once, and healed in all points that have it. What a
file says is never believed, only the listing, whose own hash is in the manifest.
"""

import os
import random
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.drivers import process
from tasks.drivers.digest import opened, parse_listing_line, sha256_file, sha256_of
from tasks.drivers.rsnapshot import points
from tasks.errors import GbsError
from tasks.model.manifest import LISTING, NightManifest

HEAL_DEADLINE_S = 6 * 3600
_HEALING = ".heal"


@dataclass(frozen=True)
class Checked:
    """What a reading of one restore point found; paths are as the client has them."""

    point: str
    night: str
    files: int
    read_bytes: int
    damaged: tuple[str, ...]
    healed: tuple[str, ...]


@dataclass(frozen=True)
class _File:
    point: str
    path: bytes
    sha256: str


def check_points(root: Path, overnight: Path | None, percent: float, seed: int) -> list[Checked]:
    """Read `percent` of the files of all stamped points below a client's root, chosen by `seed`; heal what is damaged.

    The good copy is that of another point, or of the `overnight` copy, if it has the sha256 that the listing says.
    """
    stamped = {name: manifest for name, manifest in points(root).items() if manifest is not None}
    verdicts: dict[tuple[int, str], bool] = {}
    found = []
    for name, manifest in stamped.items():
        choice = random.Random(f"{seed} {manifest.id}")  # noqa: S311 - a sample, not a secret
        files = read_bytes = 0
        damaged, healed = list[str](), list[str]()
        try:
            listed = list(_listed(root / name, name, manifest))
        except (OSError, ValueError) as exc:
            found.append(Checked(name, manifest.id, 0, 0, (f"{LISTING}: {exc}",), ()))
            continue
        for file in listed:
            if percent < 100 and choice.random() * 100 >= percent:
                continue
            inode, size_bytes, good = _read(root, file, verdicts)
            files, read_bytes = files + 1, read_bytes + size_bytes
            if good:
                continue
            damaged.append(f"/{os.fsdecode(file.path)}")
            if _heal(root, file, inode, [*stamped], overnight):
                healed.append(damaged[-1])
                verdicts.pop((inode, file.sha256), None)
        found.append(Checked(name, manifest.id, files, read_bytes, tuple(damaged), tuple(healed)))
    return found


def _listed(folder: Path, point: str, manifest: NightManifest) -> Iterator[_File]:
    if sha256_file(folder / LISTING) != manifest.listing_sha256:
        raise ValueError("is not the one of the manifest")
    with (folder / LISTING).open("rb") as lines:
        for line in lines:
            sha256, path = parse_listing_line(line)
            yield _File(point, path, sha256)


def _read(root: Path, file: _File, verdicts: dict[tuple[int, str], bool]) -> tuple[int, int, bool]:
    """The inode (0: not a file), the bytes that were read, and whether it has the content that it should."""
    try:
        with opened(root / file.point / "data") as data:
            handle = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=data)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            os.close(handle)
            return 0, 0, False
        if (status.st_ino, file.sha256) in verdicts:
            os.close(handle)
            return status.st_ino, 0, verdicts[status.st_ino, file.sha256]
        # What lies in this machine's memory says nothing of the store.
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        good = verdicts[status.st_ino, file.sha256] = sha256_of(handle) == file.sha256
    except OSError:
        return 0, 0, False
    return status.st_ino, status.st_size, good


def _heal(root: Path, file: _File, inode: int, names: list[str], overnight: Path | None) -> bool:
    """Put a good copy in the place of a damaged or missing file, in every point that has that inode there."""
    path = os.fsdecode(file.path)
    folders = [root / name / "data" for name in names] + ([overnight] if overnight else [])
    source = next((folder / path for folder in folders if _has(folder / path, file.sha256)), None)
    if source is None:
        return False
    target, new = root / file.point / "data" / path, root / _HEALING
    if not _lies_below(root, target):
        return False
    with suppress(FileNotFoundError):
        new.unlink()
    try:
        process.run(["cp", "--archive", "--", str(source), str(new)], deadline_s=HEAL_DEADLINE_S)
        if inode:
            # Its owner, times and attributes are the damaged file's: the good one may be of another night.
            argv = ["cp", "--attributes-only", "--preserve=all", "--", str(target), str(new)]
            process.run(argv, deadline_s=HEAL_DEADLINE_S)
        if not _has(new, file.sha256):
            return False
        with new.open("rb") as copied:
            os.fsync(copied.fileno())
        for name in names:
            place = root / name / "data" / path
            if name == file.point or (inode and _inode(place) == inode and _lies_below(root, place)):
                os.link(new, link := new.with_name(f"{_HEALING}-link"))
                os.rename(link, place)
    except (OSError, GbsError):
        return False
    finally:
        with suppress(FileNotFoundError):
            new.unlink()
    return True


def _lies_below(root: Path, path: Path) -> bool:
    """Whether no folder on the way is a link that leads elsewhere."""
    return Path(os.path.realpath(path.parent)) == Path(os.path.realpath(root)) / path.parent.relative_to(root)


def _inode(path: Path) -> int:
    try:
        return path.lstat().st_ino
    except OSError:
        return 0


def _has(path: Path, sha256: str) -> bool:
    try:
        return not path.is_symlink() and path.is_file() and sha256_file(path) == sha256
    except OSError:
        return False
