"""A rotation killed by SIGKILL at every rename that it makes: older points are as they were, the next night goes on.

rsnapshot's own frees the last place again, and an older point goes without a new one in its stead.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from tasks.drivers import restore_points
from tasks.drivers.permanent import PermanentPlace
from tasks.model.retention import Pin
from tests.lab.engine_bench import id_of
from tests.unit.points_site import STORE_ID, Site

PLACED = {"weekly.1": 1, "weekly.0": 8, "daily.2": 15, "daily.1": 16, "daily.0": 17}
PINNED, UNPINNED, FRESH = 2, 3, 18
KEPT = {PINNED: f"kept.{id_of(PINNED)}", UNPINNED: f"kept.{id_of(UNPINNED)}"}
AFTER = {"daily.0": 18, "daily.1": 17, "daily.2": 16, "weekly.0": 15, "weekly.1": 8, KEPT[PINNED]: PINNED}
"""The points of a rotation that nobody kills."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every place is taken, two points are outside of the cascade, one of them pinned; a sync is made by rsnapshot."""
    site = Site(tmp_path_factory.mktemp("prepared"))
    for name, number in {**PLACED, **{name: number for number, name in KEPT.items()}}.items():
        site.place(name, number)
    night = id_of(PINNED)
    restore_points.pin(site.root, Pin(night=night, until=date.max, reason="an audit"), night)
    site.night(FRESH)
    site.sync()
    return site.root.parent.parent


def copied(prepared: Path, folder: Path) -> Site:
    subprocess.run(["cp", "-a", str(prepared), str(folder)], check=True)
    return Site(folder, far=PermanentPlace(folder / "far", STORE_ID, "local"))


def sums(root: Path) -> dict[str, str]:
    """By sha256sum, of each night that is there, point or not: its files' sums by what its own file says it is."""
    found = {}
    for folder in (path for path in root.iterdir() if (path / "data/number").exists()):
        command = "find . -type f ! -path ./held.json | sort | xargs sha256sum"
        said = subprocess.run(["sh", "-c", command], cwd=folder, check=True, capture_output=True, text=True).stdout
        number = (folder / "data/number").read_text()
        assert number not in found, "a night is there once"
        found[number] = said
    return found


def renames(site: Site, kill_at: int | None = None) -> int:
    """Rotate in a process of its own, which dies by SIGKILL right before one of its renames; how many it made."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        rename, made = os.rename, 0

        def counted(source: Path, target: Path) -> None:
            nonlocal made
            if made == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)
            made += 1
            os.write(tell, b".")
            if made == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            os.rename = counted  # type: ignore[assignment]
            restore_points._rotate(site.root, site.far.path, site.rules, datetime.now(UTC), 3)
            status = 0
        finally:
            os._exit(status)
    os.close(tell)
    with open(told, "rb") as pipe:
        made = len(pipe.read())
    _, ended = os.waitpid(child, 0)
    assert os.WIFSIGNALED(ended) if kill_at is not None else os.WEXITSTATUS(ended) == 0
    return made


def deaths(prepared: Path, folder: Path) -> Iterator[tuple[int, Site]]:
    """A site for each rename, in which that was the last one that a rotation made, and for none at all."""
    all_of_them = renames(copied(prepared, folder / "whole"))
    for made in range(all_of_them + 1):
        site = copied(prepared, folder / str(made))
        assert renames(site, made) == made
        yield made, site


def test_rotation_killed_at_any_rename_costs_no_point_and_the_next_night_goes_on(
    prepared: Path, tmp_path: Path
) -> None:
    before, died = sums(prepared / "far/web1"), 0
    for died, site in deaths(prepared, tmp_path):
        assert sums(site.root) == before, f"every night is as it was after {died} renames"
        there = set(site.days().values())
        needed = {number for number in AFTER.values() if number != FRESH}
        assert there >= needed | ({FRESH} if FRESH in there else {*PLACED.values(), UNPINNED}), (
            "one goes when the new one is there"
        )
        assert site.keep(FRESH + 1)[-1] == "daily"
        after, days = sums(site.root), site.days()
        newest = [FRESH + 1, *([FRESH, 17] if FRESH in there else [17, 16])]
        assert days == {**AFTER, **{f"daily.{age}": number for age, number in enumerate(newest)}}
        assert all(after[str(number)] == before[str(number)] for number in days.values() if number != FRESH + 1)
    assert died >= len(PLACED) + 2, "each point moved once, and the fresh one"


def test_rotation_that_nobody_kills_makes_what_was_planned(prepared: Path, tmp_path: Path) -> None:
    site = copied(prepared, tmp_path / "whole")
    renames(site)
    assert site.days() == AFTER
    assert len(list(site.root.glob(".trash-*"))) == 2
