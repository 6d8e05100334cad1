"""Restore points read again where they lie: every file against its listing, and a damaged one healed by a good copy.

Points share their unchanged files (hard links): each inode is read once, and healed in every point that lists it so.
"""

import os
import random
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.drivers import process
from tasks.drivers.digest import opened, parse_listing_line, sha256_file, sha256_of
from tasks.drivers.proven_copy import put
from tasks.drivers.restore_points import points
from tasks.drivers.store import listed_model, verify_night
from tasks.errors import GbsError, IntegrityError
from tasks.model.manifest import LISTING, MANIFEST, NightManifest
from tasks.model.verify_choice import WHOLE

HEAL_DEADLINE_S = 6 * 3600
_HEALING = ".heal"
_UNREADABLE = f"{MANIFEST}: cannot be read"
_OVERNIGHT_UNREADABLE = f"the overnight copy's {_UNREADABLE}"


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

    The good copy is that of another point, or of the `overnight` copy, if it has the sha256 that the listing says. A
    damaged file is replaced in every point that has its inode there and whose own listing says the same sha256.
    """
    mended = _mend_manifests(root, overnight.parent) if overnight else {}
    there = points(root)
    stamped = {name: manifest for name, manifest in there.items() if manifest is not None}
    listed: dict[str, dict[bytes, str]] = {}
    found: dict[str, Checked] = {}
    for name in there.keys() - stamped.keys():
        if (root / name / MANIFEST).exists():
            found[name] = Checked(name, "", 0, 0, (_UNREADABLE,), ())
    for name, manifest in stamped.items():
        try:
            listed[name] = _listed(root / name, manifest)
        except (OSError, ValueError) as exc:
            found[name] = Checked(name, manifest.id, 0, 0, (f"{LISTING}: {exc}",), ())
    verdicts: dict[tuple[int, str], bool] = {}
    for name, files in listed.items():
        choice = random.Random(f"{seed} {stamped[name].id}")  # noqa: S311 - a sample, not a secret
        count = read_bytes = 0
        damaged = [mended[name]] if name in mended else []
        healed = [*damaged]
        for path, sha256 in files.items():
            if percent < WHOLE and choice.random() * WHOLE >= percent:
                continue
            file = _File(name, path, sha256)
            inode, size_bytes, good = _read(root, file, verdicts)
            count, read_bytes = count + 1, read_bytes + size_bytes
            if good:
                continue
            damaged.append("/" + path.decode("utf-8", "backslashreplace"))
            alike = [other for other in listed if listed[other].get(path) == sha256]
            if _heal(root, file, inode, alike, overnight):
                healed.append(damaged[-1])
        found[name] = Checked(name, stamped[name].id, count, read_bytes, tuple(damaged), tuple(healed))
    return [found[name] for name in there if name in found]


def _mend_manifests(root: Path, overnight: Path) -> dict[str, str]:
    """Put the manifest of the overnight copy in the place of a damaged one of the same night, or the other way round.

    What was damaged, by the point. Whose it is tell the listing and the facts that lie beside it: a night's facts are
    no other night's.
    """
    good, mended = listed_model(overnight / MANIFEST, NightManifest), dict[str, str]()
    for name, manifest in points(root).items():
        if good is None:
            if manifest is not None and _mended(overnight, manifest, root / name):
                return {name: _OVERNIGHT_UNREADABLE}
            continue
        whole = manifest is not None and (manifest.id != good.id or _is_of(root / name, manifest))
        if not whole and _mended(root / name, good, overnight):
            mended[name] = _UNREADABLE
    return mended


def _mended(folder: Path, manifest: NightManifest, source: Path) -> bool:
    target = folder / MANIFEST
    return target.exists() and _is_of(folder, manifest) and put(source / MANIFEST, target)


def _is_of(folder: Path, manifest: NightManifest) -> bool:
    try:
        verify_night(folder, manifest)
    except (IntegrityError, OSError):
        return False
    return True


def _listed(folder: Path, manifest: NightManifest) -> dict[bytes, str]:
    """The sha256 of each file by the point's listing, if that is the one of the manifest."""
    if sha256_file(folder / LISTING) != manifest.listing_sha256:
        raise ValueError("is not the one of the manifest")
    with (folder / LISTING).open("rb") as lines:
        return {path: sha256 for sha256, path in map(parse_listing_line, lines)}


def _read(root: Path, file: _File, verdicts: dict[tuple[int, str], bool]) -> tuple[int, int, bool]:
    """The inode (0: not a file), the bytes that were read, and whether it has the content that it should."""
    try:
        with opened(root / file.point / "data") as data:
            handle = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=data)
    except OSError:
        return 0, 0, False
    status = os.fstat(handle)
    known = verdicts.get((status.st_ino, file.sha256))
    if not stat.S_ISREG(status.st_mode) or known is not None:
        os.close(handle)
        return (status.st_ino, 0, known) if known is not None else (0, 0, False)
    # What lies in this machine's memory says nothing of the store.
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        good = sha256_of(handle) == file.sha256
    except OSError:
        good = False  # it cannot be read
    verdicts[status.st_ino, file.sha256] = good
    return status.st_ino, status.st_size, good


def _heal(root: Path, file: _File, inode: int, alike: list[str], overnight: Path | None) -> bool:
    """Put a good copy in the place of a damaged or missing file; in each point of `alike` that has that inode there."""
    path = os.fsdecode(file.path)
    folders = [(root, root / name / "data") for name in alike] + ([(overnight, overnight)] if overnight else [])
    copies = (folder / path for top, folder in folders if _lies_below(top, folder / path))
    source = next((copy for copy in copies if _has(copy, file.sha256)), None)
    target, new, link = root / file.point / "data" / path, root / _HEALING, root / f"{_HEALING}-link"
    if source is None or not _lies_below(root, target):
        return False
    try:
        _forget(new, link)
        process.run(["cp", "--archive", "--", str(source), str(new)], deadline_s=HEAL_DEADLINE_S)
        if inode:
            # Its owner, times and attributes are the damaged file's: the good one may be of another night.
            argv = ["cp", "--attributes-only", "--preserve=all", "--", str(target), str(new)]
            process.run(argv, deadline_s=HEAL_DEADLINE_S)
        if not _has(new, file.sha256):
            return False
        with new.open("rb") as copied:
            os.fsync(copied.fileno())
        for name in alike:
            place = root / name / "data" / path
            if name == file.point or (inode and _inode(place) == inode and _lies_below(root, place)):
                os.link(new, link)
                os.rename(link, place)
    except (OSError, GbsError):
        return False
    finally:
        _forget(new, link)
    return True


def _forget(*left: Path) -> None:
    for path in left:
        with suppress(FileNotFoundError):
            path.unlink()


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
