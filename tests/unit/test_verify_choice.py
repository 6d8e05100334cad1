"""What is read: each has its turn, the longest unread first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tasks.model.verify_choice import Turn, Verified, choose_turns, noted

NOW = datetime(2026, 11, 25, tzinfo=UTC)
MADE = {name: NOW - timedelta(days=days) for name, days in (("new", 1), ("old", 90), ("middle", 40))}


def turns(read: dict[str, datetime], tried: dict[str, datetime] | None = None, **options: int) -> list[Turn]:
    records = {name: Verified(image=name, at=read.get(name, MADE[name])) for name in {*read, *(tried or ())}}
    for name, time in (tried or {}).items():
        records[name] = records[name].model_copy(update={"tried": time})
    return choose_turns(MADE, records, NOW, **options)


def names(read: dict[str, datetime], tried: dict[str, datetime] | None = None, **options: int) -> list[str]:
    return [turn.name for turn in turns(read, tried, **options)]


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
    assert turns(read)[0].name == "old"
    assert turns(read)[0].reason == "last read 2026-08-27 00:00"
    assert names({}, tried=read) == ["old", "middle", "new"]


def test_one_that_stays_damaged_takes_no_others_turn() -> None:
    tried = {"old": NOW - timedelta(hours=1)}
    assert names({}, tried, at_most=1) == ["middle"]
    assert names({}, tried, older_than_days=30) == ["middle", "old"], "it is read where there is room"
    assert turns({}, tried)[-1].reason == "last read 2026-08-27 00:00, tried 2026-11-24 23:00"


DAMAGE = {"vda.raw": "chunk 5", "vdb.raw": "chunk 9"}


def test_damage_that_is_known_is_no_new_one_and_more_of_it_is() -> None:
    later = NOW + timedelta(days=1)
    found = noted(Verified(image="a", at=NOW), DAMAGE, ["vda.raw", "vdb.raw"], NOW, whole=True)
    assert (found.hurt, found.damaged) == (NOW, ("vda.raw", "vdb.raw"))
    for damage in (DAMAGE, {"vda.raw": "chunk 5"}):
        again = noted(found, damage, list(damage), later, whole=True)
        assert (again.hurt, again.damaged, again.at) == (NOW, tuple(damage), NOW)
    assert noted(found, {"vda.raw": "chunks 5, 6"}, ["vda.raw"], later, whole=True).hurt == later
    assert noted(found, {"domain.xml": "all"}, [], later, whole=True).hurt == later, "healed, and was not known"
    healed = noted(found, DAMAGE, [], later, whole=True)
    assert (healed.hurt, healed.damaged, healed.at) == (NOW, (), later)
    assert noted(healed, DAMAGE, ["vda.raw"], later, whole=True).hurt == later, "damaged again"


def test_a_sample_makes_nothing_whole_again() -> None:
    found = noted(Verified(image="a", at=NOW), DAMAGE, ["vda.raw", "vdb.raw"], NOW, whole=True)
    later = NOW + timedelta(days=1)
    assert noted(found, {}, [], later, whole=False) == found
    assert noted(found, {"vda.raw": "chunk 5"}, ["vda.raw"], later, whole=False) == found
