"""What engines share whose points have no names and places of their own: names by age, the stamp, the plan, scratch.

Their syncs and held nights are folders as rsnapshot's are, but for the files: in `data`'s place lies what the engine
calls the night (`key.json`). What such a folder names stays in the engine.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from shutil import copyfile, disk_usage

from pydantic import BaseModel, ConfigDict

from tasks.drivers import restore_points
from tasks.drivers.engines import Advance, Ground
from tasks.drivers.night_changes import against_newest
from tasks.drivers.permanent import at, watching
from tasks.drivers.space import require_space
from tasks.drivers.store import read_model, remove, sync_tree, verify_night, write_model
from tasks.errors import IntegrityError, NothingToRecover, StoreError
from tasks.model.anomaly import Change
from tasks.model.manifest import LISTING, MANIFEST, NightManifest
from tasks.model.point_names import named
from tasks.model.retention import SYNC, Move, Point

KEY = "key.json"


class Key(BaseModel):
    """What the engine calls a night."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str


@dataclass(frozen=True)
class Stamp:
    """A sync of which all is there: the night, and what the engine calls it."""

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
    with suppress(StoreError, IntegrityError):  # names differ a little without pins, and that is no reason to show none
        pinned = set(at(ground.place, restore_points.pinned, ground.root))
    last = pinned | {night for night, copy in nights.items() if copy.manifest is None}
    names = named({night: copy.content for night, copy in nights.items()}, ground.policy.rules.retain, last)
    return {name: nights[night] for night, name in names.items()}


class PointsByAge(ABC):
    """What engines have in common that bring a point before it can be read; what the methods do says the contract."""

    ground: Ground

    @property
    @abstractmethod
    def forgets(self) -> bool:
        """As the contract says."""

    @abstractmethod
    def arranged(self) -> dict[str, Copy]:
        """The copies by the names of their points."""

    @abstractmethod
    def compared(self, copy: Copy, old: NightManifest, night: NightManifest) -> Change:
        """The overnight copy, which is of that night, against a point; errors as of `night_changes.compare`."""

    @abstractmethod
    def forget(self, keys: Collection[str]) -> None:
        """Let go of points that were given up and are due, and of `keys`, nights that were held and are no points."""

    def points(self) -> dict[str, NightManifest | None]:
        """As the contract says."""
        return {name: copy.manifest for name, copy in self.arranged().items()}

    def folder(self, point: str) -> None:
        """As the contract says."""
        return

    def retained(self) -> list[Point]:
        """As the contract says."""
        return retained(self.ground, self.arranged())

    def changes(self) -> tuple[Change | None, tuple[str, ...]]:
        """As the contract says."""
        points, night = self.arranged(), stamped(self.ground).night
        found = {name: copy.manifest for name, copy in points.items()}
        return against_newest(found, lambda name, old: self.compared(points[name], old, night))

    def planned(self, sync: str) -> list[Move]:
        """As the contract says."""
        return self.moves(self.arranged(), stamped(self.ground, sync), sync)

    def moves(self, points: Mapping[str, Copy], stamp: Stamp, sync: str) -> list[Move]:
        """As `restore_points.moves`; nothing is given up where the engine would not let go of it."""
        ground, rules, now = self.ground, self.ground.policy.rules, datetime.now(UTC)
        name = f"{rules.retain[0].interval}.0"
        newest = (f"{name} of {ground.client}", points[name].manifest if name in points else None)
        there, store = retained(ground, points), ground.place.path
        moves = at(ground.place, restore_points.moves, store, there, newest, stamp.night, rules, now, sync)
        return moves if self.forgets else [move for move in moves if move.point == sync]

    def tidy(self) -> None:
        """The engine lets go of a night before the folder goes that says what it is called.

        Folders that are damaged stay as they are; in the end the first of them is raised, or that of the pins.
        """
        doomed = at(self.ground.place, _doomed, self.ground.root, datetime.now(UTC).date())
        self.forget(doomed.keys)
        hidden = [at(self.ground.place, restore_points.hide, folder) for folder in doomed.folders]
        for folder in (*at(self.ground.place, restore_points.remains, self.ground.root), *hidden):
            remove(folder, watching(self.ground.place))
        if doomed.damage:
            raise doomed.damage[0]
        at(self.ground.place, restore_points.require_told, self.ground.root)

    def close(self, point: str) -> None:
        """As the contract says."""
        remove(self.ground.store.opened(self.ground.client) / point)


def retained(ground: Ground, points: Mapping[str, Copy]) -> list[Point]:
    """The points as retention looks at them."""
    found = {name: (copy.night, copy.content, copy.manifest) for name, copy in points.items()}
    return at(ground.place, restore_points.retained, ground.root, found)


def stamp(ground: Ground, key: str, night: NightManifest, listing: Path | None = None) -> None:
    """Say that all of a night is in the engine; with its listing where that cannot be had from there by itself."""
    at(ground.place, _stamp, ground.root / SYNC, key, night, listing)


def _stamp(folder: Path, key: str, night: NightManifest, listing: Path | None) -> None:
    folder.mkdir(mode=0o700)
    write_model(folder / KEY, Key(key=key))
    if listing is not None:
        copyfile(listing, folder / LISTING)
        sync_tree(folder)
    write_model(folder / MANIFEST, night)


def stamped(ground: Ground, sync: str = SYNC) -> Stamp:
    """The stamped sync; IntegrityError when there is none, or it is another engine's."""
    found = at(ground.place, _stamped, ground.root / sync)
    if found is None:
        raise IntegrityError(str(ground.root / sync), "a stamped sync", "none")
    return found


def _stamped(folder: Path) -> Stamp | None:
    key, night = read_model(folder / KEY, Key), read_model(folder / MANIFEST, NightManifest)
    return Stamp(key.key, night) if key and night else None


def unstamp(ground: Ground, sync: str = SYNC) -> None:
    """Take the stamp away: what it stood for is a point, or is to be made again."""
    at(ground.place, _unstamp, ground.root / sync)


def _unstamp(folder: Path) -> None:
    if folder.exists():
        restore_points.hide(folder)


@dataclass(frozen=True)
class Aside:
    """A night that is held, or was and can still be had back: the engine has it and it is no point."""

    folder: Path
    night: str
    """By the folder's name: it is known whatever is damaged in there."""
    stamp: Stamp | None
    damage: IntegrityError | None = None
    """Why there is no stamp. What the engine calls the night is not known then, and nothing of it may go."""


@dataclass(frozen=True)
class Doomed:
    """What is due to be removed, what the engine calls the nights in it that stand nowhere else, and what is wrong."""

    folders: list[Path]
    keys: set[str]
    damage: list[IntegrityError]


def aside(ground: Ground) -> list[Aside]:
    """The nights that the engine has and that are no points."""
    return at(ground.place, _aside, ground.root)


def _aside(root: Path) -> list[Aside]:
    return [_aside_of(folder) for folder in restore_points.aside(root)]


def _aside_of(folder: Path) -> Aside:
    night = folder.name.partition(restore_points.HELD.lstrip("."))[2].partition("-")[0]
    try:
        stamp = _stamped(folder)
    except IntegrityError as exc:
        return Aside(folder, night, None, exc)
    if stamp is None and not (folder / "data").exists():  # with that it is rsnapshot's
        return Aside(folder, night, None, IntegrityError(str(folder), f"{KEY} and {MANIFEST}", "not both"))
    return Aside(folder, night, stamp)


def _doomed(root: Path, today: date) -> Doomed:
    due, found = restore_points.due(root, today), _aside(root)
    damage = [one.damage for one in found if one.damage]
    try:
        fresh = _stamped(root / SYNC)
    except IntegrityError as exc:  # what it names may be any of them
        return Doomed([], set(), [exc, *damage])
    going = [one for one in found if one.folder in due and one.damage is None]
    staying = [one for one in found if one not in going]
    nights = {one.night for one in staying}
    keys = {one.stamp.key for one in going if one.stamp and one.night not in nights}
    others = {stamp.key for stamp in (fresh, *(one.stamp for one in staying)) if stamp}
    left_alone = {one.folder for one in staying}
    folders = [folder for folder in due if folder not in left_alone]
    return Doomed(folders, keys - others, damage)


def given_up(moves: list[Move]) -> list[str]:
    """The names of the points that leave."""
    return [move.point for move in moves if move.to is None]


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
