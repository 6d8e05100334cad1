"""Which images are read: each has its turn, the longest unread first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tasks.model.verify_choice import choose_turns, key_of
from tests.unit.records import pulled_image

NOW = datetime(2026, 11, 25, tzinfo=UTC)
OLD, MIDDLE, NEW = (
    pulled_image(name, ended=NOW - timedelta(days=days)) for name, days in (("old", 90), ("middle", 40), ("new", 1))
)
ALL = [NEW, OLD, MIDDLE]


def ids(**options: int) -> list[str]:
    return [turn.image.id for turn in choose_turns(ALL, {}, NOW, **options)]


def test_longest_unread_first() -> None:
    assert ids() == ["old", "middle", "new"]
    assert ids(older_than_days=30) == ["old", "middle"]
    assert ids(at_most=1) == ["old"]


def test_what_was_read_goes_to_the_end_of_the_line() -> None:
    read = {key_of(OLD): NOW - timedelta(hours=1)}
    assert [turn.image.id for turn in choose_turns(ALL, read, NOW)] == ["middle", "new", "old"]
    assert [turn.image.id for turn in choose_turns(ALL, read, NOW, older_than_days=30)] == ["middle"]


def test_reading_of_the_future_counts_as_none() -> None:
    read = {key_of(OLD): NOW + timedelta(days=365)}
    assert choose_turns(ALL, read, NOW)[0].image.id == "old"
    assert choose_turns(ALL, read, NOW)[0].reason == "last read 2026-08-27 00:00"
