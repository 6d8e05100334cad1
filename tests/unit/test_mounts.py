"""A mount point whose file system is missing is not a folder that was emptied."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.model.facts import Facts
from tasks.model.facts_disks import BlockDevice
from tasks.model.facts_mounts import FileSystem
from tasks.model.mounts import LostMounts, lost_mounts


def file_system(mountpoint: str, uuid: str | None) -> FileSystem:
    return FileSystem(mountpoint=mountpoint, source="/dev/x", fstype="ext4", uuid=uuid, size_bytes=1, used_bytes=1)


def facts(mounts: dict[str, str | None], devices: set[str] | None = None) -> Facts:
    uuids = {uuid for uuid in mounts.values() if uuid} if devices is None else devices
    values: dict[str, Any] = {
        "file_systems": tuple(file_system(*mount) for mount in mounts.items()),
        "block_devices": tuple(BlockDevice(name=uuid, type="disk", size_bytes=1, uuid=uuid) for uuid in sorted(uuids)),
    }
    return Facts.model_construct(**values)


LAST = facts({"/": "r", "/srv": "s", "/srv/deep": "d", "/data": None})


@pytest.mark.parametrize(
    ("paths", "now", "unmounted", "removed"),
    [
        (["/", "/srv"], LAST, [], []),
        (["/", "/srv"], facts({"/": "r"}, {"r", "s"}), ["/srv"], []),
        (["/", "/srv"], facts({"/": "r"}), [], ["/srv"]),
        # What was never pulled may come and go.
        (["/"], facts({"/": "r"}, {"r", "s"}), [], []),
        # A declared folder lies on the file system above it.
        (["/srv/deep/app"], facts({"/": "r", "/srv": "s"}, {"r", "s", "d"}), ["/srv/deep"], []),
        (["/srv/app"], facts({"/": "r"}, {"r", "s"}), ["/srv"], []),
        (["/srvother"], facts({"/": "r"}, {"r", "s"}), [], []),
        # Without a UUID nothing says that its device is gone.
        (["/data"], facts({"/": "r"}), ["/data"], []),
        # The same place, made anew.
        (["/srv"], facts({"/": "r", "/srv": "other"}), [], []),
    ],
)
def test_lost_mounts(paths: list[str], now: Facts, unmounted: list[str], removed: list[str]) -> None:
    lost: LostMounts = lost_mounts(LAST, now, paths)
    assert [row.mountpoint for row in lost.unmounted] == unmounted
    assert [row.mountpoint for row in lost.removed] == removed
