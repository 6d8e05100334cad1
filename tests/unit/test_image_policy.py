"""When an image is taken again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tasks.model.image_policy import due_reason
from tests.unit.records import NIGHT, image_manifest


def reason(days: float, *, flavour: str = "f", was: str = "f") -> str | None:
    return due_reason(image_manifest(NIGHT, flavour=was), flavour, NIGHT + timedelta(days=days), 90)


def test_image_is_due_when_there_is_none() -> None:
    assert due_reason(None, "", NIGHT, 90) == "there is no image yet"


@pytest.mark.parametrize(
    ("days", "flavour", "was", "word"),
    [
        (1, "g", "f", "flavour f became g"),
        (91, "f", "f", "91 days old"),
        (90.01, "f", "f", "90"),
        (-400, "f", "f", "in the future"),
    ],
)
def test_image_is_due_for_a_reason(days: float, flavour: str, was: str, word: str) -> None:
    found = reason(days, flavour=flavour, was=was)
    assert found is not None
    assert word in found


@pytest.mark.parametrize(
    ("days", "flavour", "was"), [(0, "f", "f"), (90, "f", "f"), (1, "", "f"), (1, "g", ""), (-0.1, "f", "f")]
)
def test_image_is_not_due(days: float, flavour: str, was: str) -> None:
    assert reason(days, flavour=flavour, was=was) is None
