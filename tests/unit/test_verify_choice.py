"""What is read: each has its turn, the longest unread first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tasks.model.verify_choice import choose_turns

NOW = datetime(2026, 11, 25, tzinfo=UTC)
MADE = {name: NOW - timedelta(days=days) for name, days in (("new", 1), ("old", 90), ("middle", 40))}


def names(read: dict[str, datetime], **options: int) -> list[str]:
    return [turn.name for turn in choose_turns(MADE, read, NOW, **options)]


def test_longest_unread_first() -> None:
    assert names({}) == ["old", "middle", "new"]
    assert names({}, older_than_days=30) == ["old", "middle"]
    assert names({}, at_most=1) == ["old"]


def test_what_was_read_goes_to_the_end_of_the_line() -> None:
    read = {"old": NOW - timedelta(hours=1)}
    assert names(read) == ["middle", "new", "old"]
    assert names(read, older_than_days=30) == ["middle"]


def test_reading_of_the_future_counts_as_none() -> None:
    read = {"old": NOW + timedelta(days=365)}
    assert choose_turns(MADE, read, NOW)[0].name == "old"
    assert choose_turns(MADE, read, NOW)[0].reason == "last read 2026-08-27 00:00"
