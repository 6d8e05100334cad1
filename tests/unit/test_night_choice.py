"""Which night an operator means."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tasks.errors import ConfigError, NothingToRecover
from tasks.model.night_choice import Night, choose
from tests.unit.records import NIGHT, night_manifest


def nights() -> list[Night]:
    names = ["daily.1", "overnight", "daily.0", "weekly.0"]
    ages = [1, 0, 0, 9]
    return [
        Night(name, Path("/p") / name, night_manifest(NIGHT - timedelta(days=age)))
        for name, age in zip(names, ages, strict=True)
    ]


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("latest", "overnight"),
        ("overnight", "overnight"),
        ("daily.0", "daily.0"),
        ("weekly.0", "weekly.0"),
        ("20261102T020000Z", "overnight"),
        ("20261101T020000Z", "daily.1"),
        ("2026-11-02", "overnight"),
        ("2026-11-01", "daily.1"),
        ("2026-10-30", "weekly.0"),
        ("2027-01-01", "overnight"),
    ],
)
def test_night_is_chosen_by_name_id_or_date(wanted: str, name: str) -> None:
    assert choose("web1", nights(), wanted).name == name


@pytest.mark.parametrize("wanted", ["daily.7", "monthly.0", "2026-10-01", "20260101T000000Z"])
def test_night_that_is_not_there_lists_what_is(wanted: str) -> None:
    with pytest.raises(NothingToRecover, match=r"web1.*daily\.1 \(20261101T020000Z\)"):
        choose("web1", nights(), wanted)


@pytest.mark.parametrize("wanted", ["latest", "overnight", "daily.0", "2026-11-02", "20261102T020000Z"])
def test_client_without_nights_has_nothing_to_recover_from(wanted: str) -> None:
    """`overnight` and an id were called a mistake of the operator's (exit code 2, not 10)."""
    with pytest.raises(NothingToRecover, match="there are: none"):
        choose("web1", [], wanted)


@pytest.mark.parametrize("wanted", ["", "yesterday", "hourly.0", "daily", "daily.x", "daily.²", "2026-13-01", "-rf"])
def test_words_that_name_no_night_are_the_operators_mistake(wanted: str) -> None:
    with pytest.raises(ConfigError, match="is no night"):
        choose("web1", nights(), wanted)
