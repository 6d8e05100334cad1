"""Nights on a real NFSv4.2 mount: that fail for a week, with a wrong clock, killed between renames, in both directions.

In the guest of nfs_guest.py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.drivers import restore_points, store_clock
from tasks.drivers.permanent import MARKER, PermanentPlace, at, prove
from tasks.drivers.restore_points import points
from tasks.errors import ClockDoubted, GbsError, IntegrityError, StoreSilent
from tasks.model.retention import Pin
from tests.lab.nfs_other_site import NIGHTS, killed_rotate
from tests.lab.nfs_sites import (
    FAR,
    NEAR,
    RW,
    at_the_server,
    export,
    keep_as_stage_2_does,
    server,
    slow_night,
    unmount_all,
)
from tests.unit.points_site import STORE_ID, Site

Fault = Callable[[Site], object]


def inodes(site: Site) -> dict[str, int]:
    """The inode of each file of each point, on the server's own disk."""
    folders = [FAR / "web1" / name for name in points(FAR / "web1")]
    return {str(path): path.lstat().st_ino for folder in folders for path in folder.rglob("*")}


def break_rsync(site: Site) -> None:
    failing = site.config.with_name("rsync")
    failing.write_text("#!/bin/sh\nexit 23\n")
    failing.chmod(0o755)
    site.config.write_text(site.config.read_text().replace(shutil.which("rsync") or "", str(failing)))


WEEK: list[tuple[str, Fault]] = [
    ("Permission denied", lambda _: export("rw,root_squash")),
    ("Read-only file system", lambda _: export("ro,no_root_squash")),
    ("Permission denied: .* or is it not exported", lambda _: server("exportfs -ua; exportfs -f")),
    ("the marker says 'far-2'", lambda _: (FAR / MARKER).write_text("far-2")),
    ("the marker .* is missing", lambda _: (FAR / MARKER).unlink()),
    ("SHA256SUMS is damaged", lambda site: (site.source / "SHA256SUMS").write_text("")),
    ("rsnapshot sync of web1 failed with status 2: WARNING: Some files", break_rsync),
]
"""What goes wrong with each of the nights, and what is said of it."""


def test_a_week_of_failures_with_a_rotation_due_every_night_costs_no_point(site: Site) -> None:
    for number in (1, 2, 3):
        site.keep(number)
    before, config = inodes(site), site.config.read_text()
    for number, (said, fault) in enumerate(WEEK, 4):
        site.night(number)
        fault(site)
        with pytest.raises(GbsError, match=said):
            keep_as_stage_2_does(site)
        with pytest.raises(GbsError):
            site.rotate()
        assert at_the_server(site) == {"daily.0": 3, "daily.1": 2, "daily.2": 1}, said
        assert inodes(site) == before, said
        (FAR / MARKER).write_text(STORE_ID)
        site.config.write_text(config)
        export(RW)
        unmount_all()  # what it remembers of names may be half a minute old
        prove(site.far)
    site.night(11)
    keep_as_stage_2_does(site)
    assert at_the_server(site) == {"daily.0": 11, "daily.1": 3, "daily.2": 2, "weekly.0": 1}


@contextmanager
def clock(moved: timedelta) -> Iterator[None]:
    """The machine's clock is wrong meanwhile."""

    def move(by: timedelta) -> None:
        subprocess.run(["date", "--set", f"@{(datetime.now(UTC) + by).timestamp():.0f}"], check=True)

    move(moved)
    try:
        yield
    finally:
        move(-moved)


def test_a_clock_that_was_a_year_ahead_for_a_night_is_told_and_costs_no_point(site: Site) -> None:
    for number in (1, 2, 3):
        site.keep(number)
    pinned = points(FAR / "web1")["daily.2"]
    assert pinned is not None
    until = datetime.now(UTC).date() + timedelta(days=30)
    restore_points.pin(site.root, Pin(night=pinned.id, until=until, reason="audit"), pinned.id)
    with clock(timedelta(days=365)):
        prove(site.far)
        site.keep(4 + 365)
        with pytest.raises(ClockDoubted, match="the latest time seen before"):
            store_clock.require(site.far)  # so that no trash is emptied
    store_clock.require(site.far)
    after = {"daily.0": 369, "daily.1": 3, "daily.2": 2, "weekly.0": 1}
    assert at_the_server(site) == after
    for number in (5, 6):
        site.night(number)
        prove(site.far)
        site.sync()
        with pytest.raises(IntegrityError, match="was a clock wrong"):
            site.rotate()
        assert at_the_server(site) == after
    # What the documentation says to do: the night of the wrong time is given up by hand.
    (FAR / "web1/daily.0").rename(FAR / "web1/.trash-2026-12-31-daily.0")
    site.keep(7)
    assert at_the_server(site) == {"daily.0": 7, "daily.1": 3, "daily.2": 2, "weekly.0": 1}


@pytest.mark.parametrize("done", [1, 3, 5])
def test_a_rotation_killed_between_two_renames_costs_no_point(place: PermanentPlace, tmp_path: Path, done: int) -> None:
    site = Site(tmp_path, far=place)
    site.root, near = FAR / "web1", site.root
    site.root.mkdir()
    for name, number in [("weekly.1", 1), ("weekly.0", 8), ("daily.2", 15), ("daily.1", 16), ("daily.0", 17)]:
        site.place(name, number)
    site.root = near
    prove(place)
    site.night(18)
    site.sync()
    with pytest.raises(StoreSilent):
        at(place, killed_rotate, site.root, site.rules, done)
    assert {*at_the_server(site).values()} == {1, 8, 15, 16, 17}, "none goes before the new one is there"
    site.sync()
    site.rotate()
    kept = {"daily.0": 18, "daily.1": 17, "daily.2": 16, "weekly.0": 15, "weekly.1": 8}
    assert at_the_server(site) == kept
    assert sorted(path.name for path in (FAR / "web1").iterdir()) == [*kept]


def test_two_sites_keep_on_each_other_at_the_same_time(site: Site, tmp_path: Path) -> None:
    (NEAR / MARKER).write_text("near-1")
    argv = ["nsenter", "--net=/run/netns/far", sys.executable, "-m", "tests.lab.nfs_other_site", str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        other.stdin.close()
        for number in NIGHTS:
            slow_night(site, number)
            site.sync()
            site.rotate()
        assert other.wait(120) == 0
    kept = {"daily.0": 3, "daily.1": 2, "daily.2": 1}
    assert at_the_server(site) == kept
    site.root = NEAR / "web1"
    assert site.days() == kept
    assert re.fullmatch("x+", (NEAR / "web1/daily.2/data/large").read_text())
