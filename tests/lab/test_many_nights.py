"""Hundreds of nights of luck and failure on real folders: what retention promises holds after each."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from tasks.drivers import restore_points, store_clock
from tasks.drivers.digest import sha256_file
from tasks.drivers.restore_points import mend, retained
from tasks.drivers.store import read_model
from tasks.errors import IntegrityError
from tasks.model.manifest import MANIFEST, NightManifest
from tasks.model.names import new_id
from tasks.model.retention import SYNC, Pin, Point, Reading, Retain, Rules
from tests.unit.records import night_manifest

START = datetime(2026, 1, 1, 2, tzinfo=UTC)
POLICIES = [
    Rules((Retain("daily", 2),), 2),
    Rules((Retain("daily", 3), Retain("weekly", 2)), 1),
    Rules((Retain("daily", 5), Retain("weekly", 2), Retain("monthly", 2)), 3),
]
YEAR = timedelta(days=365)


class Years:
    """A client's root, what was ever put there, and a clock."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random, self.rules, self.number = root, Random(seed), POLICIES[seed % len(POLICIES)], 0
        self.trash_days = self.random.choice([0, 3])
        self.made: dict[str, tuple[int, bytes]] = {}
        self.hurt: set[str] = set()
        self.pins: dict[int, date] = {}
        self.theirs: datetime | None = None
        """What the store says of the time."""
        root.mkdir()

    @property
    def now(self) -> datetime:
        return START + timedelta(days=self.number)

    def chance(self, of: float) -> bool:
        return self.random.random() < of

    def sync(self, now: datetime, *, stamped: bool = True) -> str:
        """What `rsnapshot.sync` leaves, in as few system calls."""
        mend(self.root)
        if (self.root / SYNC).exists():
            shutil.rmtree(self.root / SYNC)
        night = self.root / SYNC
        (night / "data").mkdir(parents=True)
        content = f"{new_id(now)}\n".encode()
        (night / "data/night").write_bytes(content)
        listed = list_files(night)
        if stamped:
            (night / MANIFEST).write_text(night_manifest(now, listing_sha256=listed).model_dump_json())
            self.made.setdefault(new_id(now), ((night / "data/night").stat().st_ino, content))
        return new_id(now)

    def rotate(self, now: datetime) -> None:
        restore_points._rotate(self.root, self.root.parent, self.rules, now, self.trash_days)

    def tidy(self, now: datetime) -> None:
        """As stage 2 does, which asks first whether the clock can be believed."""
        if store_clock.doubt(self.root.parent, now) is None:
            for folder in (*restore_points.remains(self.root), *restore_points.due(self.root, now.date())):
                shutil.rmtree(folder)

    def points(self) -> list[Point]:
        return retained(self.root)

    def pin(self, point: Point, until: date | None) -> None:
        """By hand; the folder is remembered, since a manifest that is lost later does not end the pin."""
        night, folder = point.night or "", (self.root / point.name).stat().st_ino
        restore_points.pin(self.root, Pin(night=night, until=until, reason="an audit") if until else None, night)
        self.pins = {known: day for known, day in self.pins.items() if known != folder}
        if until:
            self.pins[folder] = until

    def pinned(self) -> set[int]:
        """The folders that are pinned today."""
        self.pins = {folder: until for folder, until in self.pins.items() if self.now.date() <= until}
        return {*self.pins}

    def sound(self) -> set[str]:
        return {point.night for point in self.points() if point.sound and point.night}

    def names(self) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in self.root.iterdir() if not path.name.startswith(".")}

    def require_unaltered(self) -> None:
        """Every night that is there, given up or not, is what was put there."""
        for folder in (path for path in self.root.iterdir() if path.name != SYNC and (path / MANIFEST).exists()):
            with suppress(IntegrityError):  # a stamp that was lost
                stamp = read_model(folder / MANIFEST, NightManifest)
                assert stamp is not None
                file = folder / "data/night"
                if stamp.id not in self.hurt:
                    assert (file.stat().st_ino, file.read_bytes()) == self.made[stamp.id], folder


def list_files(night: Path) -> str:
    digest = sha256_file(night / "data/night")
    (night / "SHA256SUMS").write_text(f"{digest}  night\n")
    return sha256_file(night / "SHA256SUMS")


def something_happens(years: Years) -> None:
    """To what there is, between two nights."""
    points, random = years.points(), years.random
    if points and years.chance(0.1):
        hurt = random.choice(points)
        if hurt.night and hurt.night not in years.hurt:
            years.hurt.add(hurt.night)
            (years.root / hurt.name / "data/night").write_bytes(b"damaged")
            reading = Reading(at=years.now, percent=100, damaged=("/night",))
            restore_points.note(years.root, {hurt.night: reading})
    if points and years.chance(0.03):
        (years.root / random.choice(points).name / MANIFEST).write_text("{")
    if points and years.chance(0.1):
        lucky = random.choice(points)
        if lucky.night:
            years.pin(lucky, (years.now + timedelta(days=random.randrange(40))).date())
    if points and years.chance(0.03) and (free := random.choice(points)).night:
        years.pin(free, None)
    if years.chance(0.02):
        years.rules = random.choice(POLICIES)


def sync_fails(years: Years, _: pytest.MonkeyPatch) -> None:
    """And a rotation is due all the same."""
    years.sync(years.now, stamped=False)
    names, before = years.names(), years.sound()
    with pytest.raises(IntegrityError, match="a stamped sync"):
        years.rotate(years.now)
    assert years.names() == names
    assert years.sound() == before


def nothing_is_new(years: Years, _: pytest.MonkeyPatch) -> None:
    newest = next((point.content for point in years.points() if point.name == "daily.0"), None)
    if newest is None:
        return
    years.sync(newest)
    names = years.names()
    with suppress(IntegrityError):  # that it is another than the newest point, whose file was changed
        years.rotate(years.now)
    assert years.names() == names


def rotation_is_killed(years: Years, monkeypatch: pytest.MonkeyPatch) -> None:
    before = years.sound()
    left, rename = iter(range(years.random.randrange(12))), Path.rename

    def killed(self: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return rename(self, target)

    night = years.sync(years.now)
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        years.rotate(years.now)
    assert len(years.sound()) >= min(years.rules.least, len(before))
    assert night in years.sound() or before <= years.sound(), "none goes before the new one is there"


def clock_is_wrong(years: Years, _: pytest.MonkeyPatch) -> None:
    """It is a year ahead for a night. The next ones are refused until that point is given up by hand.

    The store is on a machine of its own whose clock is right, or on this one, or cannot be asked.
    """
    years.theirs = years.random.choice([years.now, years.now + YEAR, None])
    before, trash = {*years.names().values()}, {*years.root.glob(".trash-*")}
    years.sync(years.now + YEAR)
    years.rotate(years.now + YEAR)
    assert before < {*years.names().values()}, "none is given up by that clock, and the new one is there"
    years.tidy(years.now + YEAR)
    assert {*years.root.glob(".trash-*")} == trash
    years.theirs = years.now
    names = years.names()
    for _night in range(2):
        years.sync(years.now)
        with pytest.raises(IntegrityError, match="was a clock wrong"):
            years.rotate(years.now)
        assert years.names() == names
    (years.root / "daily.0").rename(years.root / f".trash-{years.now + timedelta(days=1):%Y-%m-%d}-daily.0")


def night_is_good(years: Years, _: pytest.MonkeyPatch) -> None:
    before = years.sound()
    night = years.sync(years.now)
    years.rotate(years.now)
    names = [point.name.split(".") for point in years.points() if not point.name.startswith("kept.")]
    for interval in {interval for interval, _ in names}:
        numbers = [int(number) for name, number in names if name == interval]
        assert numbers == [*range(len(numbers))], "a gap"
    assert next(point.night for point in years.points() if point.name == "daily.0") == night
    assert len(years.sound()) >= min(years.rules.least, len(before) + 1)


def require_trash_goes_when_due(years: Years) -> None:
    before, today = {*years.root.glob(".trash-*")}, f"{years.now:%Y-%m-%d}"
    years.tidy(years.now)
    after = {*years.root.glob(".trash-*")}
    assert all(path.name.removeprefix(".trash-")[:10] <= today for path in before - after)
    assert all(path.name.removeprefix(".trash-")[:10] > today for path in after)


NIGHTS = {night_is_good: 58, sync_fails: 20, rotation_is_killed: 15, nothing_is_new: 5, clock_is_wrong: 2}
"""What nights are like, and how many of a hundred."""


@pytest.mark.parametrize("seed", range(9))
def test_200_nights_keep_what_is_promised_whatever_happens(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # no power is cut here
    years = Years(tmp_path / "web1", seed)
    monkeypatch.setattr(store_clock, "_ask", lambda root: years.theirs)
    for years.number in range(200):
        years.theirs = years.now if years.chance(0.9) else None
        assert store_clock.doubt(tmp_path, years.now) is None
        something_happens(years)
        pinned = years.pinned()
        (night,) = years.random.choices([*NIGHTS], [*NIGHTS.values()])
        night(years, monkeypatch)
        there = {*years.names().values()}
        assert pinned <= there
        years.pins = {folder: until for folder, until in years.pins.items() if folder in there}
        years.require_unaltered()
        require_trash_goes_when_due(years)
    for folder in (years.root / point.name for point in years.points() if point.sound):
        argv = ["sha256sum", "--check", "--quiet", "--strict", "../SHA256SUMS"]
        subprocess.run(argv, cwd=folder / "data", check=True, capture_output=True)
