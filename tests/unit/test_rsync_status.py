"""rsync's exit statuses: a row each, and what no row names has failed."""

from __future__ import annotations

import pytest

from tasks.model.rsync_status import STATUS, Verdict, verdict

ROWS = {
    Verdict.GOOD: [0],
    Verdict.INCOMPLETE: [23],
    Verdict.VANISHED: [24],
    Verdict.TOO_MANY_DELETIONS: [25],
    Verdict.INTERRUPTED: [10, 12, 30, 35, 255],
    Verdict.LOCAL: [11, 13, 19, 20, 22],
}


@pytest.mark.parametrize(("meaning", "status"), [(meaning, status) for meaning, row in ROWS.items() for status in row])
def test_status_means_what_its_row_says(status: int, meaning: Verdict) -> None:
    assert verdict(status) is meaning


def test_rows_of_the_test_are_the_rows_of_the_table() -> None:
    assert {status for row in ROWS.values() for status in row} == set(STATUS)


@pytest.mark.parametrize("status", [1, 2, 3, 4, 5, 6, 14, 21, 99, 124, 126, 127, 137, -9, -15])
def test_status_that_no_row_names_has_failed(status: int) -> None:
    assert verdict(status) is Verdict.FAILED
