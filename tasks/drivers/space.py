"""What a file system has, what the folders on it take, and whether what is to begin will fit.

Nothing here knows of the permanent store's silence: its callers go by `tasks.drivers.permanent`.
"""

import fcntl
import os
import stat
import struct
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tasks.drivers import vdo
from tasks.drivers.digest import opened, parse_listing_line
from tasks.drivers.restore_points import points
from tasks.drivers.store import read_model
from tasks.errors import CommandFailed, InodesFull, StoreFull
from tasks.model.manifest import LISTING, MANIFEST, NightManifest
from tasks.model.mountinfo import Mount, mount_of, parse_mounts
from tasks.model.names import human_bytes
from tasks.model.need import Need
from tasks.model.room import Room
from tasks.model.space import Extent, Tree, Walked

REFLINKS = ("xfs", "btrfs", "bcachefs", "ocfs2")
"""File systems whose files may share extents."""
LEAST_REFLINKED_BYTES = 1 << 20
"""Images are reflinked; smaller files are not asked where they lie."""
LEAST_INODES = 1000
"""No run may use the last ones."""
_FIEMAP, _FIEMAP_FLAG_SYNC, _AT_ONCE = 0xC020660B, 1, 500
_LAST, _SHARED = 0x1, 0x2000
_HEADER, _EXTENT = struct.Struct("=QQLLLL"), struct.Struct("=QQQQQLLLL")
"""struct fiemap and struct fiemap_extent of linux/fiemap.h."""


def room(folder: Path) -> Room:
    """What the file system of a folder has for us, with what VDO beneath it says."""
    status = os.statvfs(folder)
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"))
    mount = mount_of(str(folder.resolve()), mounts)
    usage, unread = None, ""
    if pool := vdo.pool_of(_device(mount)):
        try:
            usage = vdo.usage(pool)
        except CommandFailed as exc:
            unread = str(exc)  # no reason to stop a night
    return Room(
        size_bytes=status.f_blocks * status.f_frsize,
        used_bytes=(status.f_blocks - status.f_bfree) * status.f_frsize,
        free_bytes=status.f_bavail * status.f_frsize,
        inodes=status.f_files or None,
        free_inodes=status.f_favail if status.f_files else None,
        source=mount.source,
        fstype=mount.fstype,
        vdo=usage,
        unread=unread,
    )


def _device(mount: Mount) -> str:
    """The number of what is mounted: btrfs shows one of its own."""
    with suppress(OSError):
        if mount.source.startswith("/dev/") and stat.S_ISBLK((status := os.stat(mount.source)).st_mode):
            return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return mount.device


def require_space(folder: Path, needed_bytes: int, reserve_bytes: int) -> None:
    """Raise StoreFull unless the file system of `folder` has room for `needed_bytes` and the reserve."""
    require(folder, Need(needed_bytes, 0, ""), reserve_bytes)


def require(folder: Path, need: Need, reserve_bytes: int, whose: str = "") -> None:
    """Raise StoreFull unless the file system of `folder` has room for what is needed, and the reserve beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    has = room(folder)
    reserve = f", and {human_bytes(reserve_bytes)} in reserve" if reserve_bytes else ""
    what = f" for {whose} ({need.why}{reserve})" if whose else ""
    if has.left_bytes < need.size_bytes + reserve_bytes:
        raise StoreFull(f"{folder}{what}", need.size_bytes + reserve_bytes, has.left_bytes)
    if has.free_inodes is not None and has.free_inodes < need.inodes + LEAST_INODES:
        raise InodesFull(f"{folder}{f' for {whose}' if whose else ''}", need.inodes + LEAST_INODES, has.free_inodes)


def require_for_point(source: Path, root: Path) -> None:
    """Raise StoreFull unless the permanent store has room for a night's files that its client's newest point has not.

    Only where the whole night would not fit is that looked up, in both listings. What was touched and not changed is
    copied too, and not known beforehand.
    """
    night = read_model(source / MANIFEST, NightManifest)
    if night is None:
        return  # nothing is made of it, as the stamp will say
    try:
        whole = Need(night.size_bytes, 2 * night.files, f"{human_bytes(night.size_bytes)} at most")
        require(root, whole, 0)
        return
    except StoreFull:
        newest = next((name for name, found in points(root).items() if found), None)
    require(root, _missing(source, root / newest if newest else None), 0, night.client)


def _missing(source: Path, newest: Path | None) -> Need:
    """What a night holds that a restore point does not, by their listings."""
    have = set[bytes]()
    if newest is not None and (newest / LISTING).exists():
        with (newest / LISTING).open("rb") as lines:
            have = {*lines}
    size_bytes = inodes = 0
    folders = set[bytes]()
    with (source / LISTING).open("rb") as lines, opened(source / "data") as data:
        for line in lines:
            path = parse_listing_line(line)[1]
            folders.add(path.rpartition(b"/")[0])
            if line not in have:
                with suppress(FileNotFoundError):  # that is for others to say
                    size_bytes += os.stat(path, dir_fd=data, follow_symlinks=False).st_blocks * 512
                inodes += 1
    than = f"that {newest.name} has not" if newest else "of a first night"
    return Need(size_bytes, inodes + len(folders), f"{human_bytes(size_bytes)} {than}")


def point_folders(root: Path) -> list[tuple[str, Path]]:
    """What lies in a client's root, for `walk`: its restore points, the oldest first, then all else."""
    visible = [*reversed([*points(root)])]
    return [(name, root / name) for name in (*visible, *sorted({*os.listdir(root)} - {*visible}))]


def walk(owner: str, folders: Sequence[tuple[str, Path]], *, reflinks: bool) -> Walked:
    """What an owner's folders (name and place, in this order) take on the file system of the first of them.

    Each inode is counted once, in the first folder that has it; other file systems mounted below are left out. What
    goes away meanwhile is not counted.
    """
    each = once = inodes = 0
    links: dict[int, list[int]] = {}
    shared: dict[int, tuple[Extent, ...]] = {}
    trees = []
    for name, folder in folders:
        new_bytes = new_inodes = 0
        for status, extents in _statuses(folder, links, reflinks=reflinks):
            size = status.st_blocks * 512
            each += size
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                if status.st_ino in links:
                    links[status.st_ino][0] -= 1
                    continue
                links[status.st_ino] = [status.st_nlink - 1, size]
            if extents:
                shared[status.st_ino] = extents
            new_bytes, new_inodes = new_bytes + size, new_inodes + 1
        once, inodes = once + new_bytes, inodes + new_inodes
        trees.append(Tree(name, new_bytes, new_inodes))
    elsewhere = {inode: size for inode, (left, size) in links.items() if left > 0}
    return Walked(owner, each, once, inodes, tuple(trees), elsewhere, shared)


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, sorted; nothing when there is none."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _statuses(
    root: Path, known: Container[int], *, reflinks: bool
) -> Iterator[tuple[os.stat_result, tuple[Extent, ...]]]:
    """A tree and every name in it, with the extents that a large file shares; of `known` inodes they are not asked.

    Nothing when it is not there.
    """
    try:
        top = os.lstat(root)
    except FileNotFoundError:
        return
    yield top, ()
    pending = [b"."] if stat.S_ISDIR(top.st_mode) else []
    while pending:
        below = pending.pop()
        with suppress(FileNotFoundError), opened(root) as handle, opened(below, handle) as folder:
            for name in os.listdir(folder):
                with suppress(FileNotFoundError):
                    status = os.lstat(name, dir_fd=folder)
                    if status.st_dev != top.st_dev:
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(os.path.join(below, os.fsencode(name)))
                    large = stat.S_ISREG(status.st_mode) and status.st_size >= LEAST_REFLINKED_BYTES
                    asked = reflinks and large and status.st_ino not in known
                    yield status, shared_extents(name, folder) if asked else ()


def shared_extents(name: str, folder: int) -> tuple[Extent, ...]:
    """Where on the device those parts of a file lie that are not its alone (ioctl FS_IOC_FIEMAP)."""
    found = list[Extent]()
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        start, last = 0, False
        while not last:
            answer = bytearray(_HEADER.size + _AT_ONCE * _EXTENT.size)
            _HEADER.pack_into(answer, 0, start, (1 << 64) - 1 - start, _FIEMAP_FLAG_SYNC, 0, _AT_ONCE, 0)
            fcntl.ioctl(file, _FIEMAP, answer)
            count = _HEADER.unpack_from(answer)[3]
            last = count == 0
            for number in range(count):
                logical, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(
                    answer, _HEADER.size + number * _EXTENT.size
                )
                start, last = logical + length, bool(flags & _LAST)
                if flags & _SHARED:
                    found.append((physical, length))
    finally:
        os.close(file)
    return tuple(found)
