"""Restore points where they lie: what is known of them stays known while a small file of theirs is damaged."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from tasks.drivers import restore_points

PULLED = datetime(2026, 11, 26, 2, tzinfo=UTC)


def test_time_that_another_engine_knows_counts_though_the_manifest_is_damaged(tmp_path: Path) -> None:
    (point,) = restore_points.retained(tmp_path, {"weekly.0": ("20261126T020000Z", PULLED, None)})
    assert (point.night, point.content, point.sound) == ("20261126T020000Z", PULLED, False)
