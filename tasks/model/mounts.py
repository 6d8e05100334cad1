"""What became of the file systems that a client's files lay on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from tasks.model.facts import Facts
from tasks.model.facts_mounts import FileSystem


@dataclass(frozen=True)
class LostMounts:
    """File systems of the pulled paths that are not mounted any more: their device is still there, or is gone too."""

    unmounted: tuple[FileSystem, ...]
    removed: tuple[FileSystem, ...]


def lost_mounts(last: Facts, now: Facts, paths: Sequence[str]) -> LostMounts:
    """Compare what `paths` lay on when they were pulled last with what is mounted now.

    A copy of a mount point whose file system is missing looks like a client that has deleted everything below it.
    """
    mounted = {row.mountpoint for row in now.file_systems}
    devices = {device.uuid for device in now.block_devices if device.uuid}
    beneath = {row.mountpoint: row for path in paths if (row := _beneath(last, path))}
    lost = [row for mountpoint, row in sorted(beneath.items()) if mountpoint not in mounted]
    return LostMounts(
        unmounted=tuple(row for row in lost if row.uuid is None or row.uuid in devices),
        removed=tuple(row for row in lost if row.uuid is not None and row.uuid not in devices),
    )


def not_pulled(facts: Facts, paths: Sequence[str]) -> list[FileSystem]:
    """The file systems that no path lies on; without paths, all are pulled."""
    beneath = {row.mountpoint for path in paths if (row := _beneath(facts, path))}
    return [row for row in facts.file_systems if row.mountpoint not in beneath] if paths else []


def _beneath(facts: Facts, path: str) -> FileSystem | None:
    """The file system that a path lies on."""
    parents = {path, *map(str, PurePosixPath(path).parents)}
    found = [row for row in facts.file_systems if row.mountpoint in parents]
    return max(found, key=lambda row: len(row.mountpoint), default=None)
