"""A store that takes no new file: the clock is still compared, and what is due goes, which is what makes room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.drivers import store_clock
from tasks.drivers.permanent import MARKER, PermanentPlace
from tasks.drivers.store_clock import SEEN
from tasks.errors import ClockDoubted

INODES = 12


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PermanentPlace]:
    """A file system with few inodes."""
    folder = tmp_path / "far"
    folder.mkdir()
    options = f"size=1m,nr_inodes={INODES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", str(folder)], check=True)
    (folder / MARKER).write_text("far-1")
    yield PermanentPlace(folder, "far-1", "local")
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Take every inode."""
    while left := os.statvfs(folder).f_ffree:
        (folder / f"one-{left}").mkdir()


def jumped(folder: Path, days: int) -> None:
    then = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    os.utime(folder / SEEN, (then, then))


def test_what_is_due_can_go_where_no_inode_is_left(store: PermanentPlace) -> None:
    store_clock.require(store)
    fill(store.path)
    jumped(store.path, 5)
    store_clock.require(store)
    clock = store_clock.read(store.path, datetime.now(UTC))
    assert clock.theirs is not None, "the file that is asked by is there already"
    assert clock.seen is not None
    assert abs(clock.ours - clock.seen) < timedelta(minutes=5), "so is the one that remembers"
    assert store_clock.doubt(store.path, datetime.now(UTC) + timedelta(days=2)) is not None
    jumped(store.path, 11)
    with pytest.raises(ClockDoubted, match="the latest time seen before"):
        store_clock.require(store)


def test_a_store_that_was_full_from_the_first_day_goes_by_what_was_seen(store: PermanentPlace) -> None:
    (store.path / SEEN).touch()
    fill(store.path)
    now = datetime.now(UTC)
    assert store_clock.read(store.path, now).theirs is None
    store_clock.require(store)
    jumped(store.path, 11)
    with pytest.raises(ClockDoubted, match="the latest time seen before"):
        store_clock.require(store)
    (store.path / SEEN).unlink()
    (store.path / "another").mkdir()
    assert store_clock.doubt(store.path, now) is None, "nothing was ever seen"
    with pytest.raises(OSError, match="No space left on device"):
        store_clock.confirm(store.path, now)


def test_a_store_that_is_read_only_goes_by_what_was_seen(store: PermanentPlace) -> None:
    store_clock.require(store)
    jumped(store.path, 11)
    subprocess.run(["mount", "-o", "remount,ro", str(store.path)], check=True)
    clock = store_clock.read(store.path, datetime.now(UTC))
    assert clock.theirs is None
    assert clock.doubt is not None
    assert "the latest time seen before" in clock.doubt
    assert store_clock.doubt(store.path, datetime.now(UTC) - timedelta(days=8)) is None
