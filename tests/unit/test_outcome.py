"""Outcomes: the worst one decides."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest

from tasks.model.outcome import EXIT_CODES, Outcome, StageResult, exit_code, worst

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def result(outcome: Outcome) -> StageResult:
    return StageResult(client="c", stage="s", outcome=outcome, started=NOON, ended=NOON + timedelta(seconds=90))


def test_worst_of_none_is_ok() -> None:
    assert worst([]) is Outcome.OK


def test_worst_ignores_order() -> None:
    for three in permutations(Outcome, 3):
        assert worst(three) is max(three, key=list(Outcome).index)


def test_every_outcome_has_an_exit_code() -> None:
    assert set(EXIT_CODES) == set(Outcome)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], 0),
        (["OK", "SKIPPED"], 0),
        (["OK", "WARNING"], 3),
        (["PARTIAL", "WARNING"], 3),
        (["OK", "MISSED", "PARTIAL"], 1),
        (["FAILED", "OK"], 1),
    ],
)
def test_exit_code_is_that_of_the_worst(outcomes: list[str], code: int) -> None:
    assert exit_code(result(Outcome(name)) for name in outcomes) == code


def test_result_survives_json_with_its_duration() -> None:
    before = result(Outcome.PARTIAL)
    after = StageResult.model_validate_json(before.model_dump_json())
    assert after == before
    assert after.duration_s == 90
