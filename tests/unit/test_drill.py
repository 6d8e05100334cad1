"""Whose turn it is to be drilled."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tasks.model.drill import due

BEGAN = datetime(2026, 1, 1, 2, tzinfo=UTC)


@given(vms=st.integers(1, 70), every_days=st.integers(1, 40), minutes=st.lists(st.integers(0, 300), min_size=1))
def test_every_vm_has_its_turn_within_the_days_and_no_night_is_crowded(
    vms: int, every_days: int, minutes: list[int]
) -> None:
    last: dict[str, datetime | None] = {f"vm{number:02}": None for number in range(vms)}
    turns: dict[str, list[int]] = {vm: [] for vm in last}
    for night in range(3 * every_days + 1):
        now = BEGAN + timedelta(days=night)
        chosen = due(last, now, every_days)
        assert len(chosen) <= -(-vms // every_days)
        for vm in chosen:
            turns[vm].append(night)
            last[vm] = now + timedelta(minutes=minutes[night % len(minutes)])
    for nights in turns.values():
        assert nights[0] < every_days, "it was never drilled in the first round"
        gaps = [after - before for before, after in itertools.pairwise(nights)]
        assert set(gaps) <= {every_days}


def test_who_was_never_drilled_comes_first_then_who_waits_longest() -> None:
    last = {"a": BEGAN - timedelta(days=40), "b": BEGAN - timedelta(days=50), "c": None, "d": BEGAN}
    assert due(last, BEGAN, 1) == ["c", "b", "a"]
    assert due(last, BEGAN, 4) == ["c"]
