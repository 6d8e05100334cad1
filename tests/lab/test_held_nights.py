"""Held nights on real trees, made by rsnapshot: what is held, that nothing older changes, and what a word does."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from tasks.drivers import held_nights, night_changes, permanent, restore_points, store_clock
from tasks.drivers.held_nights import PAST, Braked
from tasks.drivers.restore_points import pins, points, retained
from tasks.drivers.store import read_model, write_model
from tasks.errors import ConfigError, IntegrityError, UnknownName
from tasks.model.anomaly import Decision, Past
from tasks.model.inventory import Policy
from tasks.model.retention import Pin
from tests.lab.engine_bench import Bench, id_of, nothing
from tests.lab.night_content import FILES, Tree, encrypted, plain_tree

POLICY = Policy(daily=3, weekly=2, monthly=0, least=1, trash_days=3)
RENAMES = {"hold": 2, "accept": 5, "reject": 3}
"""Records are renamed into their place, too."""


class Held(Bench):
    """A client whose nights have any content, and are judged before they rotate."""

    def __init__(self, folder: Path) -> None:
        super().__init__("rsnapshot", folder, POLICY)

    def stage2(self, number: int, tree: Tree) -> Braked:
        self.content(number, tree)
        braked = self.judged()
        if not braked.held:
            self.rotate()
        return braked


def proven(folder: Path) -> bool:
    argv = ["sha256sum", "--check", "--quiet", "--strict", "../SHA256SUMS"]
    return subprocess.run(argv, cwd=folder / "data", check=False, capture_output=True).returncode == 0


def sums(root: Path) -> str:
    """Of every file of every point, by sha256sum."""
    command = "find daily.* weekly.* kept.* -type f 2>/dev/null | sort | xargs -r sha256sum"
    return subprocess.run(["sh", "-c", command], cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Held:
    """Two good nights. What touches the permanent store does so in this process: tests look on and interrupt it."""
    monkeypatch.setattr(permanent, "_called", lambda place, deadline_s, call: call())
    site = Held(tmp_path)
    for number in (1, 2):
        assert site.stage2(number, plain_tree() | {"log": f"night {number}".encode()}).reasons == ()
    return site


@pytest.mark.parametrize("ending", ["", ".locked"])
def test_week_of_encrypted_nights_is_held_and_no_point_changes(site: Held, ending: str) -> None:
    before = sums(site.root)
    for number in range(3, 10):
        braked = site.stage2(number, encrypted(plain_tree(), ending=ending))
        assert braked.held
        assert any("look encrypted" in reason for reason in braked.reasons)
        assert sums(site.root) == before
    assert site.days() == {"daily.0": 2, "daily.1": 1}
    assert site.waiting() == [3, 9], "the first, which changed the least, and the newest"
    assert len(list(site.root.glob(".trash-*-held-*"))) == 5
    assert restore_points.tidy(site.far, site.root) == 0
    assert all(proven(folder) for folder in site.root.glob(".held-*"))
    assert retained(site.root)[0].pin == Pin(
        night=id_of(2), until=date.max, reason=f"held: night {id_of(9)} is not like it"
    )


def test_files_of_other_names_count_when_plain_ones_are_gone(site: Held) -> None:
    tree = encrypted(plain_tree())
    braked = site.stage2(3, {f"{number:08x}": content for number, content in enumerate(tree.values())})
    assert braked.change is not None
    assert (braked.change.scrambled, braked.change.deleted) == (FILES, FILES + 1)
    assert braked.held


@pytest.mark.parametrize(
    ("before", "turn"),
    [
        (b"plain text and more of it " * 4000, lambda old: os.urandom(4096) + old[4096:]),
        (b"plain text and more of it " * 4000, lambda old: old[:50_000] + os.urandom(8000) + old[58_000:]),
        (b"\x89PNG\r\n\x1a\n" + bytes(64) + os.urandom(9000), lambda old: os.urandom(len(old))),
    ],
    ids=["only the beginning", "a stretch", "a picture"],
)
def test_one_piece_of_a_file_is_enough(site: Held, before: bytes, turn: Callable[[bytes], bytes]) -> None:
    site.stage2(3, plain_tree() | {f"big-{number}": before + bytes([number]) for number in range(40)})
    braked = site.stage2(4, plain_tree() | {f"big-{number}": turn(before) for number in range(40)})
    assert braked.change is not None
    assert braked.change.scrambled == 40
    assert braked.held


def test_deleted_files_are_held_and_moved_ones_are_not(site: Held) -> None:
    tree = plain_tree()
    moved = {(f"moved-{name}" if number % 2 else name): tree[name] for number, name in enumerate(tree)}
    braked = site.stage2(3, moved)
    assert braked.change is not None
    assert (braked.held, braked.change.moved, braked.change.deleted) == (False, FILES // 2, 1)
    braked = site.stage2(4, dict(list(moved.items())[: FILES // 2]))
    assert braked.held
    assert braked.reasons == ("30 of 60 files are gone (50 %, 30 % is the policy's limit)",)


def test_upgrade_restore_and_compressed_logs_are_let_through(site: Held) -> None:
    upgraded = plain_tree() | dict(list(plain_tree(version=1).items())[: FILES // 2])
    assert not site.stage2(3, upgraded).held
    logs = {f"log-{number}": b"GET / 200\n" * 500 + str(number).encode() for number in range(40)}
    assert not site.stage2(4, upgraded | logs).held

    def gzipped(content: bytes) -> bytes:
        return subprocess.run(["gzip", "-c"], input=content, capture_output=True, check=True).stdout

    braked = site.stage2(5, upgraded | {f"{name}.gz": gzipped(content) for name, content in logs.items()})
    assert braked.change is not None
    assert braked.change.scrambled == 0
    assert braked.reasons == ("40 of 100 files are gone (40 %, 30 % is the policy's limit)",)


def test_slow_encryption_is_compared_with_the_last_good_point(site: Held) -> None:
    """A night that is not kept does not become what the next one is compared with."""
    tree = plain_tree()
    assert not site.stage2(3, encrypted(tree, lambda number: number < 15)).held, "fewer than 20 files are not seen"
    assert site.stage2(4, encrypted(tree, lambda number: number < 40)).held
    braked = site.stage2(5, encrypted(tree, lambda number: number < 41))
    assert braked.held
    assert braked.change is not None
    assert braked.change.against == id_of(3)


def test_nothing_changed_opens_no_file(site: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("tasks.drivers.night_changes.opened", opened)
    monkeypatch.setattr("tasks.drivers.night_changes.sha256_file", opened)
    assert site.stage2(3, plain_tree() | {"log": b"night 2"}).reasons == ()
    assert site.days()["daily.0"] == 3


def test_older_versions_are_opened_only_where_the_new_ones_look_like_chance(
    site: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie in the permanent store, far away."""
    opened: list[bytes] = []
    real = night_changes._pieces

    def noted(folder: int, path: bytes) -> list[bytes]:
        opened.append(path)
        return real(folder, path)

    monkeypatch.setattr(night_changes, "_pieces", noted)
    tree = plain_tree(version=1)
    tree |= encrypted({"file-7.txt": tree["file-7.txt"]})
    assert site.stage2(3, tree).change.scrambled == 1  # type: ignore[union-attr]
    assert len(opened) == FILES + 1
    assert opened.count(b"file-7.txt") == 2


def test_newest_point_with_a_damaged_listing_is_passed_over(site: Held) -> None:
    (site.root / "daily.0/SHA256SUMS").write_text("")
    braked = site.stage2(3, encrypted(plain_tree()))
    assert braked.change is not None
    assert (braked.held, braked.change.against) == (True, id_of(1))


def test_night_that_is_like_the_good_one_again_goes_on(site: Held) -> None:
    site.stage2(3, encrypted(plain_tree()))
    braked = site.stage2(4, plain_tree() | {"log": b"night 4"})
    assert (braked.held, braked.waiting) == (False, (id_of(3),))
    for number in range(5, 9):
        site.stage2(number, plain_tree() | {"log": str(number).encode()})
    assert site.days() == {"daily.0": 8, "daily.1": 7, "daily.2": 6, "weekly.0": 1, f"kept.{id_of(2)}": 2}
    with pytest.raises(ConfigError, match="cannot become the newest"):
        site.accept()
    assert site.waiting() == [3]
    site.reject()
    assert pins(site.root).pins[0].night == id_of(2)


def test_same_night_again_is_held_once(site: Held) -> None:
    tree = encrypted(plain_tree())
    site.stage2(3, tree)
    first = (site.root / f".held-{id_of(3)}").stat().st_ino
    assert site.stage2(3, tree).held
    assert (site.root / f".held-{id_of(3)}").stat().st_ino == first
    assert not (site.root / ".sync").exists()


def test_accepted_night_is_the_newest_point_and_its_like_is_not_held_again(site: Held) -> None:
    for number in (3, 4):
        site.stage2(number, encrypted(plain_tree()))
    assert [move.to for move in site.accept(dry_run=True).moves] == ["daily.2", "daily.1", "daily.0"]
    assert site.waiting() == [3, 4]
    decision = site.accept()
    assert [move.to for move in decision.moves] == ["daily.2", "daily.1", "daily.0"]
    assert decision.given_up == (id_of(3),)
    assert site.days() == {"daily.0": 4, "daily.1": 2, "daily.2": 1}
    assert not (site.root / "daily.0/held.json").exists()
    assert all(point.pin is None for point in retained(site.root))
    assert site.accept() == Decision()
    assert site.accept(id_of(4)).moves == ()
    with pytest.raises(UnknownName, match="no held night named '20260101T000000Z'"):
        site.accept("20260101T000000Z")
    assert not site.stage2(5, plain_tree(version=2)).held
    past = read_model(site.root / PAST, Past)
    assert past is not None
    assert [night.accepted for night in past.nights if night.accepted] == ["a new release"]


def test_rejected_night_is_in_the_trash_and_the_next_one_is_held_again(site: Held) -> None:
    restore_points.pin(site.root, Pin(night=id_of(2), until=datetime.now(UTC).date(), reason="audit"), id_of(2))
    site.stage2(3, encrypted(plain_tree()))
    assert site.reject(dry_run=True).given_up == (id_of(3),)
    assert site.waiting() == [3]
    decision = site.reject()
    until = datetime.now(UTC).date() + timedelta(days=held_nights.REJECTED_DAYS)
    kept = Pin(night=id_of(2), until=until, reason=f"audit; night {id_of(3)} was rejected: an attack")
    assert decision.pinned == pins(site.root).pins == (kept,)
    (trash,) = site.root.glob(".trash-*-held-*")
    assert trash.name.startswith(f".trash-{decision.due}-held-{id_of(3)}-")
    assert proven(trash)
    assert site.reject() == site.reject(id_of(3)) == Decision()
    with pytest.raises(UnknownName):
        site.reject("*")
    trash.rename(site.root / f".held-{id_of(3)}")
    assert site.waiting() == [3], "it can be had back"
    site.reject()
    assert site.stage2(4, encrypted(plain_tree())).held
    assert site.days() == {"daily.0": 2, "daily.1": 1}


@pytest.mark.parametrize(
    ("word", "done"), [(word, done) for word, renames in RENAMES.items() for done in range(renames)]
)
def test_killed_between_any_two_renames_the_next_run_goes_on(
    site: Held, monkeypatch: pytest.MonkeyPatch, word: str, done: int
) -> None:
    bad = encrypted(plain_tree())
    if word != "hold":
        site.stage2(3, bad)
        site.stage2(4, bad)
    before, renames, rename = site.days(), iter(range(done)), Path.rename

    def killed(self: Path, target: Path) -> Path:
        if next(renames, None) is None:
            raise KeyboardInterrupt
        return rename(self, target)

    def act() -> object:
        match word:
            case "hold":
                return held_nights.brake(site.engine())
            case "accept":
                return site.accept(id_of(4))
            case _:
                return site.reject()

    if word == "hold":
        site.content(4, bad)
        site.engine().sync(site.manifest, nothing)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            act()
    if word == "hold":
        site.stage2(4, bad)
        assert site.waiting() == [4]
        assert site.days() == before
        return
    assert all(proven(folder) for folder in site.root.iterdir() if (folder / "data").is_dir())
    with suppress(UnknownName):
        act()
    assert site.waiting() == []
    kept = {"daily.0": 4, "daily.1": 2, "daily.2": 1} if word == "accept" else before
    assert site.days() == kept
    assert site.stage2(5, plain_tree() | {"log": b"night 2"}).change is not None
    assert points(site.root)["daily.0"] is not None


@pytest.mark.parametrize("days", [400, -400])
def test_while_the_clock_is_in_doubt_no_held_night_is_given_up(site: Held, days: int) -> None:
    """A clock that was behind put them into the trash with a day that was over once it was right."""
    store_clock.doubt(site.far.path, datetime.now(UTC))
    then = time.time() + days * 86400
    os.utime(site.far.path / store_clock.SEEN, (then, then))
    for number in range(3, 6):
        braked = site.stage2(number, encrypted(plain_tree()))
        assert (braked.held, braked.given_up) == (True, ())
    assert site.waiting() == [3, 4, 5]
    assert not list(site.root.glob(".trash-*"))
    store_clock.confirm(site.far.path, datetime.now(UTC))
    assert site.stage2(6, encrypted(plain_tree())).given_up == (id_of(4), id_of(5))
    assert site.waiting() == [3, 6]


def test_while_pins_cannot_be_read_nights_go_on_and_none_is_given_up(site: Held) -> None:
    """A damaged file stopped the client's stage 2, so that no night was kept any more."""
    good = restore_points.pins(site.root)
    (site.root / restore_points.PINS).write_text("{")
    for number in range(3, 6):
        site.content(number, plain_tree() | {"log": str(number).encode()})
        assert site.judged().reasons == ()
        assert site.engine().rotate()
        with pytest.raises(IntegrityError, match=r"\.pins\.json is damaged"):
            site.engine().tidy()
    days = {"daily.0": 5, "daily.1": 4, "daily.2": 3, "weekly.0": 1, f"kept.{id_of(2)}": 2}
    assert site.days() == days
    assert all(".pins.json is damaged" in (point.pin.reason if point.pin else "") for point in retained(site.root))
    write_model(site.root / restore_points.PINS, good)
    site.stage2(6, plain_tree() | {"log": b"6"})
    site.engine().tidy()
    assert site.days() == {"daily.0": 6, "daily.1": 5, "daily.2": 4, "weekly.0": 1}


def test_night_whose_record_is_lost_still_keeps_what_it_was_compared_with(site: Held) -> None:
    """Which one that was stands only in the record."""
    site.stage2(3, encrypted(plain_tree()))
    (site.root / f".held-{id_of(3)}" / restore_points.RECORD).write_text("{")
    for number in range(4, 8):
        with pytest.raises(IntegrityError, match=r"held\.json is damaged"):  # when all is done
            site.stage2(number, plain_tree() | {"log": str(number).encode()})
    assert {1, 2} <= {*site.days().values()}
    assert site.waiting() == [3]
