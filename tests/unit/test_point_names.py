"""Points without names of their own get those that rsnapshot's cascade would have given them."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.model.names import new_id
from tasks.model.point_names import named
from tasks.model.retention import KEPT, SYNC, Pin, Point, Retain, Rules, after, plan
from tests.unit.records import NIGHT

counts = st.tuples(st.integers(2, 9), st.integers(0, 4), st.integers(0, 3))


def rules_of(daily: int, weekly: int, monthly: int) -> Rules:
    rows = (("daily", daily), ("weekly", weekly), ("monthly", monthly if weekly else 0))
    return Rules(tuple(Retain(interval, count) for interval, count in rows if count), 1)


def by_names(points: list[Point], rules: Rules) -> list[Point]:
    """The same nights, with the names that follow from their age."""
    nights = {point.night: point for point in points if point.night}
    contents = {night: point.content for night, point in nights.items() if point.content}
    pinned = {night for night, point in nights.items() if point.pin}
    names = named(contents, rules.retain, pinned)
    assert len(set(names.values())) == len(names)
    return [Point(name, night, nights[night].content, nights[night].pin) for night, name in names.items()]


@settings(max_examples=60, deadline=None)
@given(counts, st.lists(st.integers(1, 12), min_size=30, max_size=120))
def test_names_are_those_of_the_cascade_whatever_nights_failed(counts: tuple[int, int, int], gaps: list[int]) -> None:
    rules, now, points = rules_of(*counts), NIGHT, list[Point]()
    for gap in gaps:
        now += timedelta(days=gap)
        points = after(points, plan(points, rules, now, now), Point(SYNC, new_id(now), now))
        assert {point.name: point.night for point in by_names(points, rules)} == {
            point.name: point.night for point in points
        }


@settings(max_examples=60, deadline=None)
@given(counts, counts, st.lists(st.integers(1, 9), min_size=30, max_size=60), st.integers(0, 29))
def test_pinned_night_stays_also_when_the_policy_changes(
    before: tuple[int, int, int], later: tuple[int, int, int], gaps: list[int], pinned: int
) -> None:
    now, points, wanted = NIGHT, list[Point](), None
    for number, gap in enumerate(gaps):
        rules = rules_of(*(before if number < len(gaps) // 2 else later))
        now += timedelta(days=gap)
        pin = Pin(night=new_id(now), until=now.date() + timedelta(days=60), reason="x") if number == pinned else None
        wanted = pin or wanted
        points = by_names(points, rules)
        points = after(points, plan(points, rules, now, now), Point(SYNC, new_id(now), now, pin))
        nights = [point.night for point in points]
        assert new_id(now) in nights
        assert wanted is None or not wanted.holds(now) or wanted.night in nights
        assert len(points) <= sum(row.count for row in rules.retain) + 1


def test_surplus_daily_points_do_not_push_out_monthly_ones() -> None:
    """By their order alone, 7 daily points too many would have become weekly and monthly, and the real ones nothing."""
    days = [*range(100, 86, -1), 80, 73, 66, 59, 31, 3]
    contents = {f"{day}": NIGHT + timedelta(days=day) for day in days}
    names = named(contents, rules_of(7, 4, 3).retain)
    assert [names[str(day)] for day in (100, 94)] == ["daily.0", "daily.6"]
    assert {day: names[str(day)] for day in (87, 80, 73, 66)} == {
        87: "weekly.0", 80: "weekly.1", 73: "weekly.2", 66: "weekly.3",
    }  # fmt: skip
    assert {day: names[str(day)] for day in (59, 31, 3)} == {59: "monthly.0", 31: "monthly.1", 3: "monthly.2"}
    assert sorted(night for night, name in names.items() if name.startswith(KEPT)) == [
        "88",
        "89",
        "90",
        "91",
        "92",
        "93",
    ]
