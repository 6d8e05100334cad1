"""Rotation: over many nights of luck and failure it keeps the promises of retention."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.model.retention import SYNC, Retain, due_rotations, moves

START = datetime(2026, 1, 1, 2, 0, tzinfo=UTC)
Points = dict[str, datetime | None]


def run_night(points: Points, retain: list[Retain], synced: datetime) -> list[str]:
    due = due_rotations(points, retain, synced)
    names = {**points, SYNC: synced}
    for move in moves(points, retain, due):
        assert move.to not in names, "a point is never lost under another"
        content = names.pop(move.point)
        if move.to is not None:
            names[move.to] = content
    points.clear()
    points.update({name: content for name, content in names.items() if name != SYNC})
    return [rotation.interval for rotation in due]


def times(points: Points, interval: str) -> list[datetime]:
    """The contents of an interval, newest first."""
    found = [(int(name.partition(".")[2]), when) for name, when in points.items() if name.startswith(interval)]
    return [when for _, when in sorted(found) if when is not None]


@st.composite
def policies(draw: st.DrawFn) -> list[Retain]:
    daily, weekly = draw(st.integers(2, 20)), draw(st.integers(0, 6))
    monthly = draw(st.integers(0, 4)) if weekly else 0
    rows = [Retain("daily", daily), Retain("weekly", weekly), Retain("monthly", monthly)]
    return [row for row in rows if row.count]


@settings(max_examples=15, deadline=None)
@given(policies(), st.integers(0, 1 << 30), st.sampled_from([0.0, 0.1, 0.5, 0.9]))
def test_400_nights_with_failures_keep_the_promises(retain: list[Retain], seed: int, failing: float) -> None:
    points: Points = {}
    random = Random(seed)
    for night in range(400):
        synced = START + timedelta(days=night, minutes=random.randrange(90))
        before = dict(points)
        if random.random() < failing:
            # The sync did not happen: .sync still holds what is already daily.0, or nothing.
            if (newest := points.get("daily.0")) is not None:
                assert run_night(points, retain, newest) == []
            assert points == before
            continue
        done = run_night(points, retain, synced)
        assert done[-1] == "daily"
        assert points["daily.0"] == synced == max(when for when in points.values() if when)
        assert len(points) >= len(before)
        assert len(points) <= sum(row.count for row in retain)
        lost = set(before.values()) - set(points.values())
        # What goes is the oldest of an interval that was full, and one new point took its place.
        full = [row for row in retain if f"{row.interval}.{row.count - 1}" in before]
        assert lost <= {before[f"{row.interval}.{row.count - 1}"] for row in full}
        assert len(lost) <= 1
        for interval, days in (("weekly", 7), ("monthly", 28)):
            kept = times(points, interval)
            assert kept == sorted(kept, reverse=True)
            assert all(newer - older >= timedelta(days=days) for newer, older in pairwise(kept))


def test_default_policy_reaches_back_three_months() -> None:
    retain = [Retain("daily", 14), Retain("weekly", 4), Retain("monthly", 3)]
    points: Points = {}
    for night in range(400):
        run_night(points, retain, START + timedelta(days=night))
        if night > 150:
            oldest = min(when for when in points.values() if when)
            assert START + timedelta(days=night) - oldest > timedelta(days=90)
    assert len(points) == 21


def test_client_that_fails_for_months_keeps_every_point() -> None:
    retain = [Retain("daily", 3), Retain("weekly", 2)]
    points: Points = {}
    for night in range(20):
        run_night(points, retain, START + timedelta(days=night))
    before = dict(points)
    for _ in range(100):
        assert due_rotations(points, retain, START + timedelta(days=19)) == []
    assert points == before


def test_first_night_rotates_daily_alone() -> None:
    due = due_rotations({}, [Retain("daily", 14), Retain("weekly", 4)], START)
    assert [rotation.interval for rotation in due] == ["daily"]
    assert "2026-01-01 02:00" in due[0].reason


@pytest.mark.parametrize(("seconds", "rotates"), [(-1, False), (0, False), (1, True)])
def test_sync_rotates_only_when_it_is_newer(seconds: int, rotates: bool) -> None:
    due = due_rotations({"daily.0": START}, [Retain("daily", 2)], START + timedelta(seconds=seconds))
    assert bool(due) is rotates


@pytest.mark.parametrize(("days", "weekly"), [(6.99, False), (7, True), (30, True)])
def test_weekly_rotates_when_the_oldest_daily_is_seven_days_newer(days: float, weekly: bool) -> None:
    points = {"daily.0": START + timedelta(days=days + 1), "daily.1": START + timedelta(days=days), "weekly.0": START}
    due = due_rotations(points, [Retain("daily", 2), Retain("weekly", 2)], START + timedelta(days=days + 2))
    assert [rotation.interval for rotation in due] == (["weekly", "daily"] if weekly else ["daily"])
    assert all(rotation.reason for rotation in due)


def test_coarsest_rotates_first_so_that_nothing_is_pushed_out_before_it_is_taken() -> None:
    points: Points = {"daily.0": START, "daily.1": START, "weekly.0": START - timedelta(days=60)}
    retain = [Retain("daily", 2), Retain("weekly", 1), Retain("monthly", 1)]
    due = due_rotations(points, retain, START + timedelta(days=1))
    assert [rotation.interval for rotation in due] == ["monthly", "weekly", "daily"]


def test_point_without_stamp_does_not_stop_the_newest() -> None:
    points = {"daily.0": None, "daily.1": None}
    due = due_rotations(points, [Retain("daily", 2)], START)
    assert [rotation.interval for rotation in due] == ["daily"]
