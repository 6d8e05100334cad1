"""What engines share whose points have no names and places of their own: names by age, the stamp, the plan, scratch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from shutil import disk_usage

from pydantic import BaseModel, ConfigDict

from tasks.drivers import restore_points, store_clock
from tasks.drivers.engines import Advance, Ground
from tasks.drivers.permanent import at
from tasks.drivers.space import require_space
from tasks.drivers.store import read_model, remove, verify_night, write_model
from tasks.errors import IntegrityError, NothingToRecover, StoreError
from tasks.model.manifest import NightManifest
from tasks.model.point_names import named
from tasks.model.retention import SYNC, Move, Point, plan

STAMP = ".stamp.json"


class Stamp(BaseModel):
    """A sync of which all is there: the night, and what the engine calls it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    night: NightManifest


@dataclass(frozen=True)
class Copy:
    """A night as an engine has it: what it calls it, whose content is of when, and its manifest if that is good."""

    key: str
    night: str
    content: datetime
    manifest: NightManifest | None


def arranged(ground: Ground, copies: list[Copy]) -> dict[str, Copy]:
    """Copies by the names of their points, newest first; of a night that is there twice the last one."""
    nights = {copy.night: copy for copy in copies}
    pinned = set[str]()
    with suppress(StoreError):  # names differ a little without pins, and that is no reason to show none
        pinned = {pin.night for pin in at(ground.place, restore_points.pins, ground.root).pins}
    last = pinned | {night for night, copy in nights.items() if copy.manifest is None}
    names = named({night: copy.content for night, copy in nights.items()}, ground.policy.rules.retain, last)
    return {name: nights[night] for night, name in names.items()}


class PointsByAge(ABC):
    """What engines have in common that bring a point before it can be read; what the methods do says the contract."""

    ground: Ground

    @abstractmethod
    def arranged(self) -> dict[str, Copy]:
        """The copies by the names of their points."""

    def points(self) -> dict[str, NightManifest | None]:
        """As the contract says."""
        return {name: copy.manifest for name, copy in self.arranged().items()}

    def folder(self, point: str) -> None:
        """As the contract says."""
        return

    def retained(self) -> list[Point]:
        """As the contract says."""
        return retained(self.ground, self.arranged())

    def close(self, point: str) -> None:
        """As the contract says."""
        remove(self.ground.store.opened(self.ground.client) / point)


def retained(ground: Ground, points: Mapping[str, Copy]) -> list[Point]:
    """The points as retention looks at them."""
    found = {name: copy.manifest for name, copy in points.items()}
    return at(ground.place, restore_points.retained, ground.root, found)


def stamp(ground: Ground, key: str, night: NightManifest) -> None:
    """Say that all of a night is in the engine."""
    at(ground.place, write_model, ground.root / STAMP, Stamp(key=key, night=night))


def stamped(ground: Ground) -> Stamp:
    """The stamped sync; IntegrityError when there is none."""
    found = at(ground.place, read_model, ground.root / STAMP, Stamp)
    if found is None:
        raise IntegrityError(str(ground.root / STAMP), "a stamped sync", "none")
    return found


def unstamp(ground: Ground) -> None:
    """Take the stamp away: what it stood for is a point, or is to be made again."""
    at(ground.place, Path.unlink, ground.root / STAMP, missing_ok=True)


def planned(ground: Ground, points: Mapping[str, Copy], sync: Stamp) -> list[Move]:
    """What taking the sync in does to the points; [] when it is there already.

    IntegrityError when the newest point is of a later time: nothing would rotate until then.
    """
    rules, now = ground.policy.rules, datetime.now(UTC)
    doubt = at(ground.place, store_clock.doubt, ground.place.path, now)
    moves = plan(retained(ground, points), rules, sync.night.ended, now, doubt)
    newest = points.get(f"{rules.retain[0].interval}.0")
    if not moves and newest is not None and newest.manifest != sync.night:
        expected = f"the stamp of night {sync.night.id}"
        raise IntegrityError(ground.client, expected, f"a point of {newest.night}: was a clock wrong?")
    return moves


def given_up(moves: list[Move]) -> list[str]:
    """The names of the points that leave."""
    return [move.point for move in moves if move.to is None and move.point != SYNC]


def make_root(ground: Ground) -> None:
    """Make the client's folder of the permanent store when it is not there."""
    at(ground.place, Path.mkdir, ground.root, mode=0o700, parents=False, exist_ok=True)


def scratch(
    ground: Ground, point: str, found: Copy | None, advance: Advance, bring: Callable[[Path, Callable[[], None]], None]
) -> Path:
    """A night brought to a folder of the store by `bring`, which is given the folder and whom to call meanwhile.

    What is there already goes first: a run that was killed left it. After a failure nothing stays.
    """
    folder = ground.store.opened(ground.client) / point
    if found is None or found.manifest is None:
        raise NothingToRecover(f"client {ground.client}", f"there is no restore point {point}, or its manifest is gone")
    with _emptied(folder):
        # Holes come back filled, so it may take as much as the files are long.
        require_space(folder.parent, found.manifest.size_bytes, ground.reserve_bytes)
        before, whole = disk_usage(folder.parent).free, found.manifest.size_bytes

        def told() -> None:
            advance(min(max(0, before - disk_usage(folder.parent).free), whole), whole)

        bring(folder, told)
        verify_night(folder, found.manifest)
    return folder


@contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    remove(folder)
    try:
        yield
    except BaseException:
        remove(folder)
        raise
