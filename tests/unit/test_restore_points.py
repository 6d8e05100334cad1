"""Restore points where they lie: what is known of them stays known while a small file of theirs is damaged."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.drivers import restore_points
from tasks.drivers.permanent import PermanentPlace
from tasks.drivers.store import write_model
from tasks.errors import IntegrityError
from tasks.model.manifest import MANIFEST
from tasks.model.retention import Pin
from tests.unit.records import NIGHT, night_manifest

PULLED = datetime(2026, 11, 26, 2, tzinfo=UTC)


def test_time_that_another_engine_knows_counts_though_the_manifest_is_damaged(tmp_path: Path) -> None:
    (point,) = restore_points.retained(tmp_path, {"weekly.0": ("20261126T020000Z", PULLED, None)})
    assert (point.night, point.content, point.sound) == ("20261126T020000Z", PULLED, False)


def keep(root: Path, name: str, day: int) -> str:
    """Make a restore point that has a manifest and nothing else; its night."""
    night = night_manifest(NIGHT + timedelta(days=day))
    write_model(root / name / MANIFEST, night)
    return night.id


def pin(root: Path, night: str, days: int) -> None:
    until = datetime.now(UTC).date() + timedelta(days=days)
    restore_points.pin(root, Pin(night=night, until=until, reason="audit"), night)


def test_pin_that_is_over_takes_no_protection_away_while_it_cannot_be_told_which_are(tmp_path: Path) -> None:
    """Symptom: the night that a held one was compared with went, as somebody had pinned it once."""
    pin(tmp_path, keep(tmp_path, "daily.0", 1), -1)
    (tmp_path / ".held-20261126T020000Z").mkdir()
    (tmp_path / ".held-20261126T020000Z" / restore_points.RECORD).write_text("{")
    (point,) = restore_points.retained(tmp_path)
    assert point.pin is not None
    assert point.pin.holds(datetime.now(UTC))
    assert "held.json is damaged" in point.pin.reason


def test_point_whose_manifest_is_gone_may_be_the_one_whose_pin_names_no_other(tmp_path: Path) -> None:
    night, other = keep(tmp_path, "daily.1", 1), keep(tmp_path, "daily.0", 2)
    pin(tmp_path, other, 9)
    (tmp_path / "daily.1" / MANIFEST).unlink()
    assert [point.unreadable for point in restore_points.retained(tmp_path)] == [False, False]
    pin(tmp_path, night, -1)
    assert [point.unreadable for point in restore_points.retained(tmp_path)] == [False, False], "that pin is over"
    pin(tmp_path, night, 9)
    assert [point.unreadable for point in restore_points.retained(tmp_path)] == [False, True]
    (tmp_path / restore_points.PINS).write_text("{")
    assert [point.unreadable for point in restore_points.retained(tmp_path)] == [False, True]


def test_to_tidy_tells_of_a_held_night_whose_record_cannot_be_read(tmp_path: Path) -> None:
    place = PermanentPlace(tmp_path, "far", "local")
    (tmp_path / ".gbs-store").write_text("far\n")
    root = tmp_path / "web1"
    for name in (".held-20261126T020000Z", ".delete-old"):
        (root / name).mkdir(parents=True)
    with pytest.raises(IntegrityError, match=r"\.held-20261126T020000Z/held\.json is damaged"):
        restore_points.tidy(place, root)
    assert [path.name for path in root.iterdir()] == [".held-20261126T020000Z"], "what it can do is done"
