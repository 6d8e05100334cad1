"""What is held and what is not, over months of made nights: upgrades and rotated logs are not, attacks are."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.model.anomaly import (
    FEW_BYTES,
    FEW_FILES,
    KNOWN_NIGHTS,
    NIGHTS,
    Change,
    Figure,
    Past,
    PastNight,
    judge,
)
from tasks.model.inventory import Policy

CEILINGS = Policy().ceilings
COUNTS = {Figure.SCRAMBLED: "scrambled", Figure.CHANGED: "changed", Figure.DELETED: "deleted"}


def change(number: int = 0, files: int = 50_000, **figures: Any) -> Change:
    values = {"files": files, "files_before": files, "size_bytes": 10 << 30, "size_before": 10 << 30}
    return Change.model_validate({"night": f"{number:04}", "against": f"{number - 1:04}", **values, **figures})


def past(*changes: Change) -> Past:
    known = Past()
    for one in changes:
        known = known.with_night(PastNight(change=one))
    return known


QUIET = past(*(change(number, changed=40 + number % 7, new=5) for number in range(30)))


def ordinary(number: int, random: Random, files: int) -> Change:
    """A night of a server with people on it: now and then an upgrade, rarely something is cleared."""
    upgrade = random.random() < 0.1
    changed = random.randrange(files // 8) if upgrade else random.randrange(1 + files // 50)
    deleted = random.randrange(1 + files // (20 if upgrade or random.random() < 0.05 else 500))
    return change(number, files, changed=changed, deleted=deleted, scrambled=random.randrange(FEW_FILES))


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([30, 400, 50_000, 2_000_000]))
def test_year_of_ordinary_nights_is_never_held(seed: int, files: int) -> None:
    random, known = Random(seed), Past()
    for number in range(365):
        night = ordinary(number, random, files)
        assert judge(night, known, CEILINGS) == []
        known = known.with_night(PastNight(change=night))
    assert len(known.nights) == NIGHTS


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 120), st.integers(200, 2_000_000), st.sampled_from(list(COUNTS)))
def test_more_than_the_policy_allows_is_held_whatever_is_usual(
    seed: int, nights: int, files: int, figure: Figure
) -> None:
    random = Random(seed)
    known = past(*(ordinary(number, random, files) for number in range(nights)))
    count = files * int(CEILINGS[figure]) // 100 + FEW_FILES
    (reason,) = judge(change(999, files, **{COUNTS[figure]: count}), known, CEILINGS)
    assert reason.startswith(f"{count} of {files} files ")


@settings(deadline=None)
@given(st.integers(0, FEW_FILES - 1), st.integers(0, 2000), st.sampled_from(list(COUNTS)))
def test_few_files_are_never_a_reason(count: int, files: int, figure: Figure) -> None:
    for known in (Past(), QUIET):
        assert judge(change(999, files, **{COUNTS[figure]: count}), known, CEILINGS) == []


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 50_000), min_size=KNOWN_NIGHTS, max_size=NIGHTS),
    st.integers(0, 50_000),
    st.sampled_from(list(COUNTS)),
)
def test_limit_lies_between_a_part_of_the_policys_and_the_whole(counts: list[int], count: int, figure: Figure) -> None:
    known = past(*(change(number, **{COUNTS[figure]: one}) for number, one in enumerate(counts)))
    held = judge(change(999, **{COUNTS[figure]: count}), known, CEILINGS)
    percent = 100 * count / 50_000
    assert held or percent <= CEILINGS[figure]
    assert not held or percent > CEILINGS[figure] / 10


@settings(max_examples=20, deadline=None)
@given(st.integers(FEW_FILES, 50_000), st.sampled_from(list(COUNTS)), st.integers(0, 40))
def test_what_was_accepted_is_not_held_again(count: int, figure: Figure, nights: int) -> None:
    known = past(*(change(number) for number in range(nights)))
    night = change(500, **{COUNTS[figure]: count})
    known = known.with_night(PastNight(change=night, accepted="a new release"))
    for later in range(501, 500 + NIGHTS):
        again = change(later, **{COUNTS[figure]: count})
        assert judge(again, known, CEILINGS) == []
        known = known.with_night(PastNight(change=again))
    # It is forgotten at last, and one wild night has not become usual.
    for later in range(600, 600 + 2 * NIGHTS):
        known = known.with_night(PastNight(change=change(later)))
    assert bool(judge(night, known, CEILINGS)) is (100 * count / 50_000 > _floor(figure) and count >= FEW_FILES)


def _floor(figure: Figure) -> float:
    return CEILINGS[figure] * (0.1 if figure is Figure.SCRAMBLED else 0.5)


def test_night_does_not_speak_for_itself() -> None:
    night = change(29, scrambled=5000)
    assert judge(night, QUIET.with_night(PastNight(change=night, accepted="x")), CEILINGS)


@pytest.mark.parametrize(
    ("what", "figures", "held"),
    [
        ("package upgrade", {"changed": 7000, "new": 900, "deleted": 600}, False),
        ("kernel removed", {"deleted": 6000, "new": 3}, False),
        ("new large files", {"new": 40_000, "size_bytes": 900 << 30, "written_bytes": 890 << 30}, False),
        ("log files rotated and compressed", {"changed": 90, "new": 60, "deleted": 60, "scrambled": 12}, False),
        ("tree moved", {"moved": 45_000}, False),
        ("everything encrypted in place", {"changed": 48_000, "scrambled": 47_000}, True),
        ("users' files encrypted and renamed", {"new": 3000, "deleted": 3000, "scrambled": 3000}, True),
        ("every third file deleted", {"deleted": 17_000}, True),
        ("content emptied", {"changed": 9000, "size_bytes": 6 << 30}, True),
        ("encryption that is not seen in the bytes", {"changed": 22_000}, True),
        ("such, of the users' files only", {"changed": 3000}, False),
    ],
)
def test_after_quiet_nights(what: str, figures: dict[str, int], held: bool) -> None:
    assert bool(judge(change(99, **figures), QUIET, CEILINGS)) is held, what


@pytest.mark.parametrize(("count", "held_on_night"), [(2000, 0), (400, 0), (250, None), (19, None)])
def test_slow_encryption_is_held_down_to_a_rate(count: int, held_on_night: int | None) -> None:
    """250 of 50,000 files a night are the limit, half a percent: such an attack needs 200 nights and is not seen."""
    known = QUIET
    for number in range(30, 60):
        night = change(number, changed=45 + count, scrambled=count)
        if judge(night, known, CEILINGS):
            assert number - 30 == held_on_night
            return
        known = known.with_night(PastNight(change=night))
    assert held_on_night is None


def test_first_week_of_a_client_has_the_policys_limits() -> None:
    known = past(*(change(number, changed=45) for number in range(KNOWN_NIGHTS - 1)))
    assert judge(change(50, scrambled=2400), known, CEILINGS) == []
    (reason,) = judge(change(50, scrambled=2600), known, CEILINGS)
    assert reason == "2600 of 50000 files were plain and look encrypted now (5.2 %, 5 % is the policy's limit)"


def test_client_that_compresses_logs_every_night_is_used_to_it() -> None:
    known = past(*(change(number, changed=3000, scrambled=1500 + number % 5) for number in range(20)))
    assert judge(change(50, changed=3000, scrambled=1507), known, CEILINGS) == []
    (reason,) = judge(change(50, changed=3000, scrambled=2400), known, CEILINGS)
    assert "(4.8 %, 3.02 % is the limit after its last 20 nights)" in reason


def test_few_bytes_that_are_gone_are_no_reason() -> None:
    assert judge(change(9, size_before=FEW_BYTES, size_bytes=1), QUIET, CEILINGS) == []
    (reason,) = judge(change(9, size_before=4 << 30, size_bytes=1 << 30), QUIET, CEILINGS)
    assert reason.startswith("3.0 GiB of 4.0 GiB are gone (75 %, 25 %")
