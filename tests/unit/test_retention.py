"""Retention: over many nights of luck and failure it keeps its promises."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.model.names import new_id
from tasks.model.retention import (
    KEPT,
    SPACING,
    SYNC,
    Pin,
    Point,
    Retain,
    Rules,
    after,
    due_rotations,
    night_of,
    plan,
)

START = datetime(2026, 1, 1, 2, 0, tzinfo=UTC)
DEFAULT = Rules((Retain("daily", 14), Retain("weekly", 4), Retain("monthly", 3)), 2)
SHORT = (Retain("daily", 3), Retain("weekly", 1), Retain("monthly", 2))


def night(when: datetime) -> Point:
    return Point(SYNC, new_id(when), when)


def run_night(points: list[Point], rules: Rules, synced: datetime) -> list[Point]:
    """The points after a night whose content is of `synced`; every rename is to a name that is free."""
    names = {point.name for point in points} | {SYNC}
    moves = plan(points, rules, synced, synced)
    for move in moves:
        assert move.reason
        names.remove(move.point)
        assert move.to not in names, "a point is never lost under another"
        if move.to is not None:
            names.add(move.to)
    return after(points, moves, night(synced))


def contents(points: list[Point], interval: str) -> list[datetime]:
    """The contents of an interval, newest first."""
    found = [point for point in points if point.name.startswith(f"{interval}.")]
    found.sort(key=lambda point: int(point.name.partition(".")[2]))
    return [point.content for point in found if point.content is not None]


def at(points: list[Point], name: str) -> Point:
    (found,) = [point for point in points if point.name == name]
    return found


@st.composite
def rules(draw: st.DrawFn) -> Rules:
    daily, weekly = draw(st.integers(2, 20)), draw(st.integers(0, 6))
    monthly = draw(st.integers(0, 4)) if weekly else 0
    rows = [Retain("daily", daily), Retain("weekly", weekly), Retain("monthly", monthly)]
    return Rules(tuple(row for row in rows if row.count), draw(st.integers(1, 2)))


@settings(max_examples=15, deadline=None)
@given(rules(), st.integers(0, 1 << 30), st.sampled_from([0.0, 0.1, 0.5, 0.9]))
def test_400_nights_with_failures_keep_the_promises(kept_by: Rules, seed: int, failing: float) -> None:
    points: list[Point] = []
    random = Random(seed)
    for number in range(400):
        synced = START + timedelta(days=number, minutes=random.randrange(90))
        before = points
        if random.random() < failing:
            # The sync did not happen: .sync still holds what is already daily.0, or nothing.
            if before:
                newest = at(before, "daily.0").content
                assert newest is not None
                assert plan(before, kept_by, newest, synced) == []
            continue
        points = run_night(before, kept_by, synced)
        assert at(points, "daily.0").content == synced == max(point.content for point in points if point.content)
        assert len(points) >= len(before)
        assert len(points) <= sum(row.count for row in kept_by.retain)
        lost = {point.night for point in before} - {point.night for point in points}
        # What goes is the oldest of an interval that was full, and one new point took its place.
        full = {f"{row.interval}.{row.count - 1}" for row in kept_by.retain}
        assert lost <= {point.night for point in before if point.name in full}
        assert len(lost) <= 1
        for interval, days in (("weekly", 7), ("monthly", 28)):
            kept = contents(points, interval)
            assert kept == sorted(kept, reverse=True)
            assert all(newer - older >= timedelta(days=days) for newer, older in pairwise(kept))


@settings(max_examples=15, deadline=None)
@given(rules(), st.integers(0, 1 << 30))
def test_whatever_happens_to_points_the_least_and_the_pinned_stay(kept_by: Rules, seed: int) -> None:
    """Stamps are lost, nights are pinned, the policy is changed, over hundreds of nights."""
    points: list[Point] = []
    random = Random(seed)
    now = kept_by
    for number in range(300):
        synced = START + timedelta(days=number)
        if points and random.random() < 0.3:
            hurt = random.choice(points)
            points = [replace(point, night=None, content=None) if point is hurt else point for point in points]
        if points and random.random() < 0.05:
            lucky = random.choice([point for point in points if point.sound] or points)
            until = (synced + timedelta(days=random.randrange(60))).date()
            pin = Pin(night=lucky.night or "", until=until, reason="an audit")
            points = [replace(point, pin=pin) if point is lucky and point.sound else point for point in points]
        if random.random() < 0.02:
            now = Rules(tuple(Retain(row.interval, random.randrange(2, 9)) for row in kept_by.retain), kept_by.least)
        before, points = points, run_night(points, now, synced)
        sound = [point for point in points if point.sound]
        assert len(sound) >= min(now.least, 1 + sum(point.sound for point in before))
        pinned = {point.night for point in before if point.sound and point.pin and point.pin.holds(synced)}
        assert pinned <= {point.night for point in sound}
        held = [point for point in points if point.name.startswith(KEPT)]
        assert all(point.night for point in held)
        assert len(held) <= len(pinned) + now.least


def oldest_sound(points: list[Point]) -> datetime:
    return min(point.content for point in points if point.sound and point.content)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([DEFAULT.retain, DEFAULT.retain[:2], SHORT]), st.integers(0, 1 << 30))
def test_one_damaged_manifest_costs_about_the_place_that_it_takes(retain: tuple[Retain, ...], seed: int) -> None:
    """Symptom: it made the coarser intervals rotate again and again, and two months of sound points went."""
    kept_by, random = Rules(retain, 1), Random(seed)
    nights = [START + timedelta(days=number, minutes=random.randrange(90)) for number in range(220)]
    hurt = random.randrange(1, 160)
    spared = list[Point]()
    for synced in nights[:hurt]:
        spared = run_night(spared, kept_by, synced)
    bad = random.choice(spared).name
    lost = Point(bad, damaged=True, unreadable=True)
    damaged = [lost if point.name == bad else point for point in spared]
    # The place that it takes; a week by which rotations come earlier or later than without it; nights start unevenly.
    bound = SPACING[retain[-1].interval] + timedelta(days=7) + timedelta(days=2)
    for synced in nights[hurt:]:
        spared, damaged = run_night(spared, kept_by, synced), run_night(damaged, kept_by, synced)
        assert oldest_sound(damaged) - oldest_sound(spared) < bound
        assert [point.name for point in damaged if point.unreadable], "nor does it go itself"


def test_bad_daily_makes_no_coarser_interval_rotate() -> None:
    retain = [Retain("daily", 2), Retain("weekly", 2)]
    points = {"daily.0": START + timedelta(days=2), "daily.1": None, "weekly.0": START}
    for there in (points, {"daily.0": START, "daily.1": None}):
        due = due_rotations(there, retain, START + timedelta(days=9))
        assert [rotation.interval for rotation in due] == ["daily"]


@pytest.mark.parametrize(("days", "weekly"), [(13, False), (14, True)])
def test_bad_newest_weekly_is_taken_for_a_week_newer_than_the_next(days: int, weekly: bool) -> None:
    retain, taken = [Retain("daily", 1), Retain("weekly", 2)], START + timedelta(days=days)
    due = due_rotations({"daily.0": taken, "weekly.0": None, "weekly.1": START}, retain, taken + timedelta(days=1))
    assert [rotation.interval for rotation in due] == (["weekly", "daily"] if weekly else ["daily"])


def test_default_policy_reaches_back_three_months() -> None:
    points: list[Point] = []
    for number in range(400):
        points = run_night(points, DEFAULT, START + timedelta(days=number))
        if number > 150:
            oldest = min(point.content for point in points if point.content)
            assert START + timedelta(days=number) - oldest > timedelta(days=90)
    assert len(points) == 21


def test_client_that_fails_for_months_keeps_every_point() -> None:
    few = Rules((Retain("daily", 3), Retain("weekly", 2)), 2)
    points: list[Point] = []
    for number in range(20):
        points = run_night(points, few, START + timedelta(days=number))
    last = START + timedelta(days=19)
    for day in range(100):
        assert plan(points, few, last, last + timedelta(days=day)) == []


def test_pinned_night_leaves_the_cascade_and_stays_until_its_day() -> None:
    few = Rules((Retain("daily", 2),), 1)
    points = run_night(run_night([], few, START), few, START + timedelta(days=1))
    pin = Pin(night=new_id(START), until=date(2026, 1, 4), reason="before the upgrade")
    points = [replace(point, pin=pin) if point.night == pin.night else point for point in points]
    (kept,) = [move for move in plan(points, few, START + timedelta(days=2), START) if move.point == "daily.1"]
    assert (kept.to, kept.reason) == (f"kept.{pin.night}", "pinned until 2026-01-04: before the upgrade")
    for day in (2, 3):
        points = run_night(points, few, START + timedelta(days=day))
        assert at(points, f"kept.{pin.night}").content == START
    points = run_night(points, few, START + timedelta(days=4))
    assert {point.name for point in points} == {"daily.0", "daily.1"}


def test_night_that_is_there_twice_is_kept_once() -> None:
    few = Rules((Retain("daily", 2),), 1)
    pin = Pin(night=new_id(START), until=date(2026, 2, 1), reason="audit")
    points = [replace(night(START), name=name, pin=pin) for name in ("daily.0", "daily.1", "daily.2")]
    kept = run_night(points, few, START + timedelta(days=1))
    assert sorted(point.name for point in kept) == ["daily.0", "daily.1", f"kept.{pin.night}"]


def test_pinned_night_stays_though_a_file_of_it_is_damaged() -> None:
    few = Rules((Retain("daily", 2),), 1)
    pin = Pin(night=new_id(START), until=date(2026, 2, 1), reason="audit")
    points = [
        replace(night(START + timedelta(days=1)), name="daily.0"),
        replace(night(START), name="daily.1", pin=pin, damaged=True),
    ]
    kept = run_night(points, few, START + timedelta(days=2))
    assert sorted(point.name for point in kept) == ["daily.0", "daily.1", f"kept.{pin.night}"]


def test_sound_point_is_not_given_up_while_the_others_are_no_backups() -> None:
    few = Rules((Retain("daily", 2),), 2)
    points = [Point("daily.0"), replace(night(START), name="daily.1")]
    moves = plan(points, few, START + timedelta(days=1), START)
    (spared,) = [move for move in moves if move.point == "daily.1"]
    assert spared.to == f"kept.{new_id(START)}"
    assert spared.reason == "only 1 others are sound, and 2 are the least"


def test_point_whose_manifest_cannot_be_read_is_not_given_up() -> None:
    """Whose night it is, and whether that is pinned, cannot be told."""
    few = Rules((Retain("daily", 1),), 1)
    points = [replace(night(START), name="daily.0")]
    for day in range(1, 5):
        points = [replace(point, night=None, content=None, unreadable=True) for point in points]
        points = run_night(points, few, START + timedelta(days=day))
        unknown = [f"kept.unknown.{number}" for number in range(day)]
        assert sorted(point.name for point in points) == ["daily.0", *unknown]


def test_sound_copy_of_a_night_stays_and_the_one_without_a_manifest_goes() -> None:
    few = Rules((Retain("daily", 1),), 1)
    pin = Pin(night=new_id(START), until=date.max, reason="an audit")
    whole = replace(night(START), name="daily.0", pin=pin)
    spoilt = replace(whole, name=f"{KEPT}{new_id(START)}", content=None, damaged=True, unreadable=True)
    after_night = run_night([whole, spoilt], few, START + timedelta(days=1))
    assert [(point.name, point.sound) for point in after_night] == [(spoilt.name, True), ("daily.0", True)]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("kept.20260101T020000Z", "20260101T020000Z"),
        ("kept.20260101T020000Z-0a1b2c3d", "20260101T020000Z"),
        ("kept.unknown.0", None),
        ("daily.0", None),
    ],
)
def test_night_of_a_point_outside_of_the_cascade_is_told_by_its_name(name: str, found: str | None) -> None:
    assert night_of(name) == found


def test_smaller_policy_gives_up_what_it_has_no_place_for() -> None:
    points: list[Point] = []
    for number in range(30):
        points = run_night(points, DEFAULT, START + timedelta(days=number))
    points = run_night(points, Rules((Retain("daily", 3),), 2), START + timedelta(days=30))
    assert sorted(point.name for point in points) == ["daily.0", "daily.1", "daily.2"]


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
    points: dict[str, datetime | None] = {"daily.0": START, "daily.1": START, "weekly.0": START - timedelta(days=60)}
    retain = [Retain("daily", 2), Retain("weekly", 1), Retain("monthly", 1)]
    due = due_rotations(points, retain, START + timedelta(days=1))
    assert [rotation.interval for rotation in due] == ["monthly", "weekly", "daily"]


def test_point_without_stamp_does_not_stop_the_newest() -> None:
    points = {"daily.0": None, "daily.1": None}
    due = due_rotations(points, [Retain("daily", 2)], START)
    assert [rotation.interval for rotation in due] == ["daily"]
