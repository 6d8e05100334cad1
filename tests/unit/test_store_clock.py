"""A clock that is wrong for a while ends no pin and empties no trash."""

from __future__ import annotations

import errno
import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.drivers import restore_points, store_clock
from tasks.drivers.store_clock import ASKED, SEEN
from tasks.errors import ClockDoubted
from tasks.model.retention import SYNC, Pin, Retain, Rules
from tests.unit.points_site import Site

YEAR = timedelta(days=365)


def remember(store: Path, before: timedelta) -> None:
    """Let the latest time that was seen be so long ago: the clock has jumped since."""
    (store / SEEN).touch()
    then = time.time() - before.total_seconds()
    os.utime(store / SEEN, (then, then))


def fresh(site: Site, number: int) -> None:
    """What a sync leaves."""
    site.night(number)
    shutil.copytree(site.source, site.root / SYNC)


def test_the_time_is_remembered_from_run_to_run(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    assert store_clock.doubt(tmp_path, now) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [SEEN, ASKED]
    assert store_clock.doubt(tmp_path, now - timedelta(hours=5)) is None
    assert store_clock.read(tmp_path, now).seen == now, "an earlier time is not remembered"


@pytest.mark.parametrize("days", [11, 400, -11])
def test_a_jump_is_doubted_until_somebody_confirms(tmp_path: Path, days: int) -> None:
    now = datetime.now(UTC)
    remember(tmp_path, timedelta(days=days))
    for _ in range(2):
        doubt = store_clock.doubt(tmp_path, now)
        assert doubt is not None
        assert f"it says {now:%Y-%m-%d}" in doubt
        assert "gbs store clock --confirm" in doubt
    assert store_clock.confirm(tmp_path, now).doubt is None
    assert store_clock.doubt(tmp_path, now) is None


def test_a_week_between_two_runs_is_no_jump(tmp_path: Path) -> None:
    remember(tmp_path, timedelta(days=8))
    assert store_clock.doubt(tmp_path, datetime.now(UTC)) is None


@pytest.mark.parametrize("ahead", [YEAR, -YEAR])
def test_a_clock_that_differs_from_the_stores_is_doubted_and_cannot_be_confirmed(
    tmp_path: Path, ahead: timedelta
) -> None:
    """Here the file system has the right time; behind NFS it is the server's."""
    doubt = store_clock.confirm(tmp_path, datetime.now(UTC) + ahead).doubt
    assert doubt is not None
    assert "correct it" in doubt
    assert not (tmp_path / SEEN).exists()


@pytest.mark.parametrize(("number", "told"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_old_time_of_a_file_that_cannot_be_touched_is_not_taken_for_the_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: bool
) -> None:
    """A full file system may open a file and not change its times."""
    (tmp_path / ASKED).touch()

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "utime", full)
    if told:
        assert store_clock.read(tmp_path, datetime.now(UTC)).theirs is None
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            store_clock.read(tmp_path, datetime.now(UTC))


def test_to_look_writes_nothing(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    store_clock.doubt(tmp_path, now)
    before = {path: path.stat().st_ctime_ns for path in (tmp_path, *tmp_path.iterdir())}
    assert store_clock.known(tmp_path, now + timedelta(days=11)).doubt is not None
    assert {path: path.stat().st_ctime_ns for path in (tmp_path, *tmp_path.iterdir())} == before


def test_a_year_ahead_no_point_is_given_up_whatever_its_pin_says(tmp_path: Path) -> None:
    site = Site(tmp_path, Rules((Retain("daily", 2),), 1))
    for number in (1, 2):
        site.place(f"daily.{2 - number}", number)
    night = restore_points.retained(site.root)[1].night or ""
    over = datetime.now(UTC).date() - timedelta(days=300)
    restore_points.pin(site.root, Pin(night=night, until=over, reason="audit"), night)
    remember(site.far.path, YEAR)
    fresh(site, 3)
    now = datetime.now(UTC)
    expected = restore_points.planned(site.root, site.far.path, site.rules, now, SYNC)
    assert f"kept.{night}" in {move.to for move in expected}, "what is said beforehand is what happens"
    (kept,) = [move for move in restore_points.rotate(site.far, site.root, site.rules, 3) if move.point == "daily.1"]
    assert kept.reason.startswith("the clock is in doubt: it says 2")
    assert site.days() == {"daily.0": 3, "daily.1": 2, f"kept.{night}": 1}
    with pytest.raises(ClockDoubted, match="while the clock is in doubt"):
        store_clock.require(site.far)
    store_clock.confirm(site.far.path, datetime.now(UTC))
    fresh(site, 4)
    site.rotate()
    assert site.days() == {"daily.0": 4, "daily.1": 3}
