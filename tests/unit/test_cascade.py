"""What engines share whose points have no places of their own: what is due goes, also after a kill."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from tasks.drivers import restore_points
from tasks.drivers.engines import Ground, cascade
from tasks.drivers.engines.cascade import Copy, PointsByAge
from tasks.drivers.permanent import MARKER, PermanentPlace
from tasks.drivers.store import Store
from tasks.errors import IntegrityError
from tasks.model.anomaly import Change
from tasks.model.inventory import Policy
from tasks.model.manifest import NightManifest
from tests.unit.records import NIGHT, night_manifest


@dataclass
class Engine(PointsByAge):
    """One that forgets what it is told to."""

    ground: Ground
    copies: dict[str, Copy]
    forgets: bool = True

    def arranged(self) -> dict[str, Copy]:
        return self.copies

    def compared(self, copy: Copy, old: NightManifest, night: NightManifest) -> Change:
        raise NotImplementedError

    def forget(self, keys: Collection[str]) -> None:
        self.forgotten = set(keys)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    place = PermanentPlace(tmp_path / "far", "far", "local")
    ground = Ground("web1", Policy(), Store(tmp_path / "store"), place)
    ground.root.mkdir(parents=True)
    (place.path / MARKER).write_text("far")
    return Engine(ground, {})


def test_removal_of_a_night_that_was_held_is_taken_up_after_a_kill(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade.stamp(engine.ground, "key-1", night_manifest(NIGHT))
    held = (engine.ground.root / ".sync").rename(engine.ground.root / ".held-20260101T000000Z")
    restore_points.give_up(held, NIGHT.date())

    def killed(folder: Path, *_: object) -> None:
        (folder / cascade.KEY).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cascade, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            engine.tidy()
    assert engine.forgotten == {"key-1"}
    engine.tidy()
    assert list(engine.ground.root.iterdir()) == []


def test_night_is_not_in_the_store_already_when_the_newest_point_cannot_be_told(engine: Engine) -> None:
    """Its time is known without its manifest, and a clock that was wrong has made it later than tonight."""
    tonight = night_manifest(NIGHT)
    cascade.stamp(engine.ground, "key-2", tonight)
    later = Copy("key-1", "20270101T000000Z", NIGHT + timedelta(days=400), None)
    with pytest.raises(IntegrityError, match="none that can be read"):
        engine.moves({"daily.0": later}, cascade.stamped(engine.ground), ".sync")
    known = Copy("key-2", tonight.id, tonight.ended, tonight)
    assert engine.moves({"daily.0": known}, cascade.stamped(engine.ground), ".sync") == []
