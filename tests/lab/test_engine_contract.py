"""One contract for every engine: rsnapshot, restic, a vendor's commands (tests/lab/vault.sh); judged by other tools."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from tasks.drivers import engines, held_nights, permanent, process, restic_heal, restic_repository, restore_points
from tasks.drivers.process import Finished
from tasks.drivers.restic_repository import Repository
from tasks.drivers.store import read_model
from tasks.errors import (
    AccessDenied,
    CommandFailed,
    ConfigError,
    IntegrityError,
    Locked,
    NothingToRecover,
    NotNow,
    StoreFull,
    StoreNotMounted,
)
from tasks.model.anomaly import Decision, Past
from tasks.model.inventory import Policy
from tasks.model.manifest import NightManifest
from tasks.model.retention import Pin, Reading
from tests.lab.engine_bench import (
    CODES,
    KEY,
    PASSWORD,
    POLICY,
    Bench,
    flip,
    id_of,
    lock_that_comes_late_stays,
    nothing,
    sync_in_child,
)
from tests.lab.hostile_tree import looks, make_tree
from tests.lab.night_content import FILES, Tree, encrypted, plain_tree

KINDS = ("rsnapshot", "restic", "command")
OTHERS = ("restic", "command")
WORDS = ("hold", "accept", "reject", "tidy")
KILLED = [(kind, word) for kind in KINDS for word in WORDS if (kind, word) != ("restic", "reject")]
"""A rejection does the same whatever the engine, and each look at a repository takes restic a second."""
SPOILT = [
    ("command", "key.json", "{"),
    ("restic", "key.json", "{"),
    ("restic", "key.json", None),
    ("restic", "manifest.json", "{"),
]
"""What is damaged or gone of the folder of a held night."""
MIB = 1 << 20


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return Bench(request.param, tmp_path)


def noise(bench: Bench, number: int, mib: int, name: str = "noise") -> None:
    """A night with a file that nothing makes smaller."""
    bench.night(number, {"same": "always", "number": str(number)})
    with (bench.source / "data" / name).open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
    bench.tree_again(number)


@pytest.mark.parametrize("fake_super", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_night_comes_back_as_it_was(
    kind: str, fake_super: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bench = Bench(kind, tmp_path_factory.mktemp("e"))
    # Its longest path must have room below the folder that a point is brought to.
    made = bench.folder / "as long as store/opened/web1/daily.0"
    made.mkdir(parents=True)
    make_tree(made)
    if fake_super:
        argv = ["rsync", "-aHAX", "--fake-super", f"{made}/kinds", f"{made}/names", f"{made}.flat/"]
        subprocess.run(argv, check=True)
        made = made.with_name(f"{made.name}.flat")
    bench.tree(1, made, fake_super=fake_super)
    bench.sync_and_rotate()
    with bench.opened("daily.0") as folder:
        # Two of rsync's own xattrs it does not compare without being told to read them, and then not as what they are.
        kinds = "-aHAS" if fake_super else "-aHAXS"
        argv = ["rsync", "-n", "-i", kinds, "--numeric-ids", "--checksum", "--delete", "--modify-window=-1"]
        said = subprocess.run([*argv, f"{bench.source}/data/", f"{folder}/data/"], capture_output=True, check=True)
        # Sockets are their servers' to make anew; neither restic nor tar brings one back.
        lost = [] if bench.kind == "rsnapshot" or fake_super else ["cS+++++++++ kinds/socket"]
        assert said.stdout.decode().splitlines() == lost
        if lost:
            (bench.source / "data" / "kinds" / "socket").unlink()
            os.utime(folder / "data" / "kinds", ns=(1, 1))
            os.utime(bench.source / "data" / "kinds", ns=(1, 1))
        assert looks(folder / "data") == looks(bench.source / "data")
        argv = ["sha256sum", "--check", "--quiet", "--strict", "../SHA256SUMS"]
        subprocess.run(argv, cwd=folder / "data", check=True, capture_output=True)


def test_nights_are_points_with_their_manifests_and_the_same_night_is_none(bench: Bench) -> None:
    assert [bench.kept(number) for number in (1, 2)] == [["daily"]] * 2
    assert bench.sync_and_rotate() == []
    assert bench.nights() == {"daily.0": 2, "daily.1": 1}
    assert [point.night for point in bench.engine().retained()] == [id_of(2), id_of(1)]
    with pytest.raises(NothingToRecover):
        bench.engine().open("daily.7", nothing)


def test_sync_is_no_point_before_it_rotates(bench: Bench) -> None:
    bench.kept(1)
    bench.night(2)
    bench.engine().sync(bench.manifest, nothing)
    assert bench.days() == {"daily.0": 1}
    bench.night(3)
    assert bench.sync_and_rotate() == ["daily"]
    assert bench.days() == {"daily.0": 3, "daily.1": 1}


def test_rotating_without_a_new_sync_is_refused(bench: Bench) -> None:
    bench.kept(1)
    with pytest.raises(IntegrityError, match="expected a stamped sync, found none"):
        bench.engine().rotate()
    assert bench.days() == {"daily.0": 1}


def test_newest_point_of_the_future_is_told(bench: Bench) -> None:
    bench.kept(365)
    bench.night(2)
    bench.engine().sync(bench.manifest, nothing)
    with pytest.raises(IntegrityError, match="was a clock wrong"):
        bench.engine().rotate()
    assert bench.days() == {"daily.0": 365}


def test_policy_gives_up_what_it_should_by_way_of_a_trash(bench: Bench) -> None:
    bench.policy = POLICY.model_copy(update={"trash_days": 3})
    for number in (1, 2, 3, 10):
        bench.kept(number)
    # The first daily point became weekly; the one after it was too near to become one.
    assert bench.days() == {"daily.0": 10, "daily.1": 3, "weekly.0": 1}
    assert copies(bench) == 4
    tomorrow(bench)
    bench.engine().tidy()
    assert copies(bench) == 3
    assert bench.days() == {"daily.0": 10, "daily.1": 3, "weekly.0": 1}


def copies(bench: Bench) -> int:
    """How many nights are there at all, points or not."""
    if bench.kind == "rsnapshot":
        return len([path for path in bench.root.glob("*") if (path / "data").is_dir() and ".delete" not in path.name])
    if bench.kind == "restic":
        return bench.restic("snapshots").count("web1 ")
    return len(list(bench.vault.glob("web1/*.tar")))


def tomorrow(bench: Bench) -> None:
    """Let the day of what was given up come."""
    due, today = f"{datetime.now(UTC) + timedelta(days=3):%Y-%m-%d}", f"{datetime.now(UTC):%Y-%m-%d}"
    if bench.kind == "restic":
        bench.restic("tag", "--add", f"gbs-trash-{today}", "--remove", f"gbs-trash-{due}", "--tag", f"gbs-trash-{due}")
    for path in [*bench.root.glob(".trash-*"), *bench.root.glob(".nights/trash-*")]:
        path.rename(path.with_name(path.name.replace(due, today)))


def test_pinned_and_last_sound_points_stay(bench: Bench) -> None:
    bench.policy = Policy(daily=2, weekly=0, monthly=0, least=2, trash_days=0)
    bench.kept(1)
    pin = Pin(night=id_of(1), until=datetime.now(UTC).date() + timedelta(days=30), reason="audit")
    restore_points.pin(bench.root, pin, id_of(1))
    bench.kept(2)
    bench.kept(3)
    assert bench.days() == {"daily.0": 3, "daily.1": 2, f"kept.{id_of(1)}": 1}
    # Of the nights only the pinned one is sound: it stays without a pin, too.
    damaged = {id_of(number): Reading(at=datetime.now(UTC), percent=100, damaged=("/a",)) for number in (2, 3)}
    restore_points.note(bench.root, damaged, [id_of(number) for number in (1, 2, 3)])
    restore_points.pin(bench.root, None, id_of(1))
    bench.kept(4)
    assert bench.days() == {"daily.0": 4, "daily.1": 3, f"kept.{id_of(1)}": 1}
    bench.kept(5)
    assert bench.days() == {"daily.0": 5, "daily.1": 4}


def test_backup_that_was_killed_costs_nothing(bench: Bench) -> None:
    bench.kept(1)
    noise(bench, 2, 200)
    begun = {
        "rsnapshot": lambda: any((bench.root / ".sync" / "data").glob(".noise*")),
        "restic": lambda: any((bench.repository / "locks").iterdir()) and packs_of(bench) > 6,
        "command": lambda: any(bench.vault.glob("web1/*.part")),
    }[bench.kind]
    child = multiprocessing.get_context("spawn").Process(target=sync_in_child, args=(bench.kind, str(bench.folder)))
    child.start()
    while not begun() and child.is_alive():
        time.sleep(0.005)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL, "it was ready before it was killed"
    while subprocess.run(["pgrep", "-f", str(bench.folder)], capture_output=True, check=False).stdout:
        time.sleep(0.05)  # what it had started ends with it
    assert bench.nights() == {"daily.0": 1}
    assert bench.sync_and_rotate() == ["daily"]
    assert bench.nights() == {"daily.0": 2, "daily.1": 1}


def packs_of(bench: Bench) -> int:
    return sum(path.is_file() for path in (bench.repository / "data").rglob("*"))


@pytest.fixture
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    image, folder = tmp_path / "image", tmp_path / "far"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(48 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_full_store_is_told_and_costs_nothing(
    kind: str, tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.restic, "PACKS_BYTES", 8 * MIB)
    bench = Bench(kind, tmp_path, far=small)
    bench.kept(1)
    noise(bench, 2, 60)
    # Why the vault says 12, only its operators know.
    with pytest.raises(CommandFailed if kind == "command" else StoreFull, match=r"status 12|has no room"):
        bench.engine().sync(bench.manifest, nothing)
    with suppress(IntegrityError):
        assert bench.engine().rotate() == []
    assert bench.nights() == {"daily.0": 1}
    bench.night(3)
    assert bench.sync_and_rotate() == ["daily"]
    assert bench.nights() == {"daily.0": 3, "daily.1": 1}


def test_damage_is_found_and_the_other_points_are_not_blamed(bench: Bench) -> None:
    noise(bench, 1, 40)
    bench.sync_and_rotate()
    noise(bench, 2, 2, "other")
    bench.sync_and_rotate()
    rows = bench.engine().verify(100)
    assert [row.damaged for row in rows] == [(), ()]
    assert sum(row.read_bytes for row in rows) > 40 * MIB
    shutil.rmtree(bench.source)  # or it would be healed
    bench.damage()
    newer, older = bench.engine().verify(100)
    assert (newer.point, newer.damaged) == ("daily.0", ())
    assert older.point == "daily.1"
    assert older.damaged == ("/noise",) if bench.kind != "command" else "status 10" in older.damaged[0]
    with pytest.raises((CommandFailed, IntegrityError)):
        check_by_hand(bench)
    assert not any(bench.store.opened("web1").glob("*")), "what could not be brought stays"


def shared_pack(bench: Bench) -> None:
    """Two nights: what restic stored of the first is one pack, of which the second still has something."""
    bench.night(1, {"old": "of the first night only", "same": "always"})
    for name in ("noise", "gone"):
        (bench.source / "data" / name).write_bytes(os.urandom(MIB))
    bench.tree_again(1)
    bench.sync_and_rotate()
    for name in ("gone", "old"):
        (bench.source / "data" / name).unlink()
    bench.tree_again(2)
    bench.sync_and_rotate()


def test_damage_is_healed_by_the_overnight_copy_if_that_is_good(bench: Bench) -> None:
    shared_pack(bench)
    bench.damage_file("noise")
    copy = bench.source / "data" / "noise"
    good = copy.read_bytes()
    copy.write_bytes(b"rotten".ljust(len(good)))
    newest = bench.engine().verify(100)[0]
    assert (newest.point, bool(newest.damaged), newest.healed) == ("daily.0", True, ())
    copy.write_bytes(good)
    newest = bench.engine().verify(100)[0]
    assert newest.damaged
    assert newest.healed == newest.damaged
    assert [row.damaged for row in bench.engine().verify(100)] == [(), ()]
    assert bench.nights() == {"daily.0": 2, "daily.1": 1}, "what only the older night needs of that pack is lost"


def check_by_hand(bench: Bench) -> None:
    with bench.opened("daily.1") as folder:
        argv = ["sha256sum", "--check", "--quiet", "--strict", "../SHA256SUMS"]
        done = subprocess.run(argv, cwd=folder / "data", check=False, capture_output=True)
        if done.returncode:
            raise IntegrityError("daily.1", "what its listing says", "another")


@pytest.fixture(scope="module")
def stocks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    @cache
    def made(kind: str) -> Bench:
        policy = Policy(daily=2, weekly=1, monthly=0, least=1, trash_days=3)
        bench = Bench(kind, tmp_path_factory.mktemp("s"), policy)
        for number in (1, 2):
            assert stage2(bench, number, plain_tree()) == ()
        bench.content(3, encrypted(plain_tree()))
        found = bench.judged()
        said = "have another content" if kind == "command" else "look encrypted"
        assert found.held
        assert any(said in reason for reason in found.reasons)
        return bench

    return made


@pytest.fixture(params=KINDS)
def stock(request: pytest.FixtureRequest, stocks: Callable[[str], Bench]) -> Bench:
    """Two good nights, 1 and 2, and one that is encrypted, 3, is held."""
    return stocks(request.param)


class TestHeld:
    """Nights that are not like the others (tests/lab/test_held_nights.py has more cases, of rsnapshot alone)."""

    @pytest.fixture
    def bench(self, stock: Bench, tmp_path: Path) -> Bench:
        return copy_of(stock, tmp_path / "copy")

    def test_more_nights_are_held_and_the_newest_is_accepted(self, bench: Bench) -> None:
        for number in (4, 5):
            assert stage2(bench, number, encrypted(plain_tree()))
        assert bench.waiting() == [3, 5]
        assert (bench.days(), copies(bench)) == ({"daily.0": 2, "daily.1": 1}, 5)
        good = bench.engine().retained()[0]
        assert (good.night, good.pin and good.pin.reason) == (id_of(2), f"held: night {id_of(5)} is not like it")
        expected = [move.to for move in bench.accept(dry_run=True).moves]
        assert bench.waiting() == [3, 5]
        assert [move.to for move in bench.accept().moves] == expected
        assert bench.nights() == {"daily.0": 5, "daily.1": 2, "weekly.0": 1}
        assert bench.waiting() == []
        assert bench.accept() == Decision()
        assert bench.accept(id_of(5)).moves == ()
        tomorrow(bench)
        bench.engine().tidy()
        assert copies(bench) == 3
        assert stage2(bench, 6, plain_tree(version=2)) == (), "so much was accepted"

    def test_night_like_the_good_one_rotates_and_the_held_one_is_rejected(self, bench: Bench) -> None:
        assert bench.judged().held, "the same night again"
        bench.engine().tidy()
        assert copies(bench) == 3
        assert stage2(bench, 4, plain_tree() | {"log": b"night 4"}) == ()
        assert bench.waiting() == [3]
        with pytest.raises(ConfigError, match="cannot become the newest"):
            bench.accept()
        decision = bench.reject()
        assert (decision.given_up, [pin.night for pin in decision.pinned]) == ((id_of(3),), [id_of(2)])
        (trash,) = bench.root.glob(".trash-*-held-*")
        trash.rename(bench.root / f".held-{id_of(3)}")
        assert bench.waiting() == [3], "it can be had back"
        bench.reject()
        assert bench.nights() == {"daily.0": 4, "daily.1": 2, "weekly.0": 1}
        assert copies(bench) == 4
        tomorrow(bench)
        bench.engine().tidy()
        assert copies(bench) == 3
        assert bench.nights() == {"daily.0": 4, "daily.1": 2, "weekly.0": 1}

    def test_deleted_files_are_held_and_an_ending_added_to_names_is_seen(self, bench: Bench) -> None:
        bench.reject()
        few = {name: content for name, content in plain_tree().items() if not name.endswith("7.txt")}
        half = dict(list(few.items())[: FILES // 2])
        assert stage2(bench, 4, half) == ("30 of 60 files are gone (50 %, 30 % is the policy's limit)",)
        renamed = encrypted(plain_tree(), lambda number: number < 25, ".locked")
        (scrambled,) = (reason for reason in stage2(bench, 5, renamed) if "look encrypted" in reason)
        assert scrambled.startswith("25 of 60 files")
        assert bench.days() == {"daily.0": 2, "daily.1": 1}

    def test_night_that_another_engine_holds_is_not_taken_in(self, bench: Bench) -> None:
        bench.kind = "command" if bench.kind == "rsnapshot" else "rsnapshot"
        for dry_run in (True, False):
            with pytest.raises(IntegrityError, match=r"a stamped sync.*none"):
                bench.accept(dry_run=dry_run)
        assert bench.waiting() == [3]
        past = read_model(bench.root / held_nights.PAST, Past)
        assert past is None or not any(night.accepted for night in past.nights)

    @pytest.mark.parametrize(("stock", "name", "content"), SPOILT, indirect=["stock"])
    def test_damaged_folder_of_a_held_night_is_said_and_stops_nothing(
        self, bench: Bench, name: str, content: str | None
    ) -> None:
        """All of the client's stage 2 stopped; or, where the file was gone, the held night was forgotten."""
        stage2(bench, 4, encrypted(plain_tree()))
        bench.reject(id_of(4))
        tomorrow(bench)
        spoilt = bench.root / f".held-{id_of(3)}" / name
        spoilt.unlink() if content is None else spoilt.write_text(content)
        bench.content(5, plain_tree() | {"log": b"night 5"})
        assert not bench.judged().held
        assert bench.engine().rotate()
        for _ in range(2):
            with pytest.raises(IntegrityError, match=rf"\.held-{id_of(3)}"):
                bench.engine().tidy()
            assert not list(bench.root.glob(".trash-*-held-*")), "what is due besides is removed"
            assert copies(bench) == 4, "three points and the held night"
            assert bench.waiting() == [3]
        assert bench.nights() == {"daily.0": 5, "daily.1": 2, "weekly.0": 1}

    @pytest.mark.parametrize("stock", OTHERS, indirect=True)
    def test_damaged_folder_in_the_trash_is_said_and_left_alone(self, bench: Bench) -> None:
        """What the engine calls its night cannot be told, and is not guessed."""
        bench.reject(id_of(3))
        tomorrow(bench)
        (trash,) = bench.root.glob(".trash-*-held-*")
        (trash / "key.json").write_text("{")
        assert stage_2_says(bench, 4)
        assert trash.exists()
        assert copies(bench) == 4
        assert bench.nights() == {"daily.0": 4, "daily.1": 2, "weekly.0": 1}

    @pytest.mark.parametrize("stock", OTHERS, indirect=True)
    def test_night_that_is_held_again_stays_when_its_first_folder_is_due(self, bench: Bench) -> None:
        """Both folders name the same night of the engine, and one of them cannot be read."""
        bench.reject(id_of(3))
        (trash,) = bench.root.glob(".trash-*-held-*")
        subprocess.run(["cp", "-a", str(trash), str(bench.root / f".held-{id_of(3)}")], check=True)
        (bench.root / f".held-{id_of(3)}" / "key.json").write_text("{")
        tomorrow(bench)
        with pytest.raises(IntegrityError, match=rf"\.held-{id_of(3)}"):
            bench.engine().tidy()
        assert copies(bench) == 3

    @pytest.mark.parametrize(("stock", "word"), KILLED, indirect=["stock"])
    def test_killed_between_any_two_steps_nothing_is_lost(self, stock: Bench, tmp_path: Path, word: str) -> None:
        prepared = copy_of(stock, tmp_path / "prepared")
        prepared.content(4, encrypted(plain_tree()))
        if word == "hold":
            prepared.engine().sync(prepared.manifest, nothing)
        else:
            assert prepared.judged().held
        if word == "tidy":
            prepared.reject(id_of(3))
            tomorrow(prepared)
        kept = copies(prepared)
        for steps in itertools.count():
            bench = copy_of(prepared, tmp_path / str(steps))
            acts: dict[str, Callable[[], object]] = {
                "hold": partial(held_nights.brake, bench.engine()),
                "accept": partial(bench.accept, id_of(4)),
                "reject": bench.reject,
                "tidy": bench.engine().tidy,
            }
            act = acts[word]
            killed = killed_after(steps, act)
            assert set(bench.days().values()) >= {1, 2}
            if word == "hold":
                assert bench.judged().held
            else:
                act()
            assert bench.waiting() == {"hold": [3, 4], "accept": [], "reject": [], "tidy": [4]}[word]
            after = {"daily.0": 4, "daily.1": 2, "weekly.0": 1} if word == "accept" else {"daily.0": 2, "daily.1": 1}
            assert bench.days() == after
            assert copies(bench) == kept - (word == "tidy")
            if not killed:
                break
        assert steps, "it was killed once at least"
        assert bench.nights() == after


def stage2(bench: Bench, number: int, tree: Tree) -> tuple[str, ...]:
    """A night as stage 2 treats it; why it is held."""
    bench.content(number, tree)
    found = bench.judged()
    if not found.held:
        bench.engine().rotate()
    bench.engine().tidy()
    return found.reasons


def stage_2_says(bench: Bench, number: int) -> str:
    """What hinders the end of a night that is like the good ones, and not its point."""
    bench.content(number, plain_tree() | {"log": f"night {number}".encode()})
    assert not bench.judged().held
    assert bench.engine().rotate()
    with pytest.raises(IntegrityError) as caught:
        bench.engine().tidy()
    return str(caught.value)


def copy_of(bench: Bench, folder: Path) -> Bench:
    subprocess.run(["cp", "-a", str(bench.folder), str(folder)], check=True)
    return Bench(bench.kind, folder, bench.policy)


def killed_after(steps: int, act: Callable[[], object]) -> bool:
    """Whether it was killed, by SIGKILL, before it renamed or forgot something once more than so many times."""
    child = os.fork()
    if child == 0:
        left = iter(range(steps))
        rename, run = Path.rename, process.run

        def step() -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        def renamed(self: Path, target: Path) -> Path:
            step()
            return rename(self, target)

        def ran(argv: Sequence[str], **options: Any) -> process.Finished:
            if {"tag", "forget", "rm"} & set(argv):
                step()
            return run(argv, **options)

        status = 1
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Path, "rename", renamed)
                patch.setattr(process, "run", ran)
                patch.setattr(permanent, "_called", lambda place, deadline_s, call: call())
                act()
            status = 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    assert os.WIFSIGNALED(ended) or os.WEXITSTATUS(ended) == 0
    return os.WIFSIGNALED(ended)


@pytest.mark.parametrize("kind", OTHERS)
class TestOthers:
    """Of engines whose points are no folders."""

    def test_wrong_secret_is_told_without_showing_it(
        self, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench = Bench(kind, tmp_path)
        bench.kept(1)
        bench.night(2)
        bench.secret("password", "a wrong one")
        bench.secret("environment", f"VAULT_HOME={bench.vault}\nVAULT_KEY=a wrong one")
        with pytest.raises(AccessDenied if kind == "restic" else CommandFailed) as caught:
            bench.engine().sync(bench.manifest, nothing)
        assert "a wrong one" not in f"{caught.value} {caplog.text}"
        (tmp_path / "password").chmod(0o644)
        (tmp_path / "environment").chmod(0o644)
        with pytest.raises(ConfigError, match="can be read by others"):
            bench.engine().points()

    def test_secrets_are_on_no_command_line(self, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        bench, seen, ended = Bench(kind, tmp_path), set[bytes](), threading.Event()
        noise(bench, 1, 40)

        def look() -> None:
            while not ended.is_set():
                for path in Path("/proc").glob("[0-9]*/cmdline"):
                    try:
                        seen.add(path.read_bytes())
                    except OSError:
                        continue

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            bench.sync_and_rotate()
            bench.nights()
        finally:
            ended.set()
            watcher.join()
        tool = b"restic" if kind == "restic" else b"vault.sh"
        assert any(tool in argv for argv in seen)
        assert not [argv for argv in seen for secret in (PASSWORD, KEY) if secret.encode() in argv]
        assert PASSWORD not in caplog.text
        assert KEY not in caplog.text

    def test_point_whose_manifest_cannot_be_read_is_not_given_up(self, kind: str, tmp_path: Path) -> None:
        """The pin of its night was lost with the manifest, and it went."""
        bench = Bench(kind, tmp_path, Policy(daily=2, weekly=0, monthly=0, least=1, trash_days=0))
        bench.kept(1)
        pin = Pin(night=id_of(1), until=datetime.now(UTC).date() + timedelta(days=30), reason="audit")
        restore_points.pin(bench.root, pin, id_of(1))
        bench.kept(2)
        bench.kept(3)
        (spoilt,) = (
            [bench.root / ".nights" / f"{id_of(1)}.json"]
            if kind == "command"
            else [path for path in bench.store.root.glob("restic/web1/*.json") if id_of(1) in path.read_text()]
        )
        spoilt.write_text("{")
        for number in (4, 5):
            bench.kept(number)
            (kept,) = [point for point in bench.engine().retained() if point.name == f"kept.{id_of(1)}"]
            # restic has the manifest itself, too.
            assert (kept.night, kept.pin, kept.sound) == (id_of(1), pin, kind == "restic")
        read = {f"kept.{id_of(1)}": 1} if kind == "restic" else {}
        assert bench.days() == {"daily.0": 5, "daily.1": 4} | read
        assert copies(bench) == 3

    def test_while_pins_cannot_be_read_nights_go_on_and_none_is_given_up(self, kind: str, tmp_path: Path) -> None:
        bench = Bench(kind, tmp_path)
        bench.kept(1)
        (bench.root / restore_points.PINS).write_text("{")
        for number in range(2, 5):
            bench.night(number)
            bench.engine().sync(bench.manifest, nothing)
            bench.engine().rotate()
        with pytest.raises(IntegrityError, match=r"\.pins\.json is damaged"):
            bench.engine().tidy()
        assert set(bench.days().values()) == {1, 2, 3, 4}

    def test_point_is_opened_where_there_is_room(self, kind: str, tmp_path: Path) -> None:
        bench = Bench(kind, tmp_path)
        bench.kept(1)
        engine = bench.engine(reserve_bytes=1 << 60)
        with pytest.raises(StoreFull):
            engine.open("daily.0", nothing)
        left = bench.store.opened("web1") / "daily.0"
        left.mkdir(parents=True)
        (left / "of a run that was killed").touch()
        with bench.opened("daily.0") as folder:
            assert folder == left
            assert sorted(os.listdir(folder)) == ["SHA256SUMS", "data", "facts.json", "manifest.json"]
        assert not left.exists()


class TestRestic:
    """What only restic has."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        return Bench("restic", tmp_path)

    def test_repository_that_is_gone_is_not_made_anew(self, bench: Bench) -> None:
        bench.kept(1)
        bench.repository.rename(bench.folder / "elsewhere")
        bench.night(2)
        for ask in (lambda: bench.engine().sync(bench.manifest, nothing), bench.engine().points):
            with pytest.raises(StoreNotMounted, match=r"repository is gone.*mount it"):
                ask()
        assert not bench.repository.exists()
        (bench.folder / "elsewhere").rename(bench.repository)
        assert bench.sync_and_rotate() == ["daily"]

    def test_lock_of_somebody_who_works_is_respected_and_a_dead_one_removed(self, bench: Bench) -> None:
        bench.kept(1)
        with bench.other_restic() as other:
            bench.night(2)
            bench.engine().sync(bench.manifest, nothing)
            with pytest.raises(Locked, match=f"process {other}"):
                bench.engine().rotate()
        assert len(bench.locks) == 1
        assert bench.sync_and_rotate() == ["daily"]
        assert not bench.locks
        assert bench.days() == {"daily.0": 2, "daily.1": 1}

    def test_lock_of_another_host_is_never_taken_for_dead_as_its_clock_may_be_wrong(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.kept(1)
        monkeypatch.setattr(restic_repository, "DEAD_AFTER", timedelta(0))  # as if its clock were far behind
        bench.night(2)
        with bench.other_restic("elsewhere"):
            bench.engine().sync(bench.manifest, nothing)
            with pytest.raises(Locked, match=r"root on elsewhere, .*if none works there any more: restic unlock"):
                bench.engine().rotate()
            (lock,) = bench.locks
        with pytest.raises(Locked, match="root on elsewhere"):
            bench.engine().rotate()
        assert bench.locks == {lock}, "nor when it is dead, which nobody can tell here"
        bench.restic("unlock", "--remove-all")
        assert bench.sync_and_rotate() == ["daily"]

    def test_lock_that_comes_while_dead_ones_are_removed_stays(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.kept(1)
        lock_that_comes_late_stays(bench, monkeypatch)

    def test_what_is_nowhere_else_is_told_and_the_repository_stays_what_it_was(self, bench: Bench) -> None:
        shared_pack(bench)
        bench.damage_file("gone")
        before = packs_of(bench)
        newer, older = bench.engine().verify(100)
        assert "/gone" in older.damaged
        assert "/gone" not in newer.damaged
        assert newer.healed == older.healed == ()
        assert packs_of(bench) == before
        assert sorted(os.listdir(bench.repository)) == ["config", "data", "index", "keys", "locks", "snapshots"]
        with bench.opened("daily.0") as folder:
            argv = ["sha256sum", "--check", "--quiet", "--strict", "../SHA256SUMS"]
            subprocess.run(argv, cwd=folder / "data", check=True, capture_output=True)

    def test_healing_that_was_killed_at_its_worst_moment_goes_on(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The damaged pack is gone, and the index does not know that yet."""
        shared_pack(bench)
        bench.damage_file("noise")
        real, indexed = restic_repository.run, list[str]()

        def run(repository: Repository, *words: str, **options: Any) -> Finished:
            if words[0] == "rebuild-index" and repository.url == str(bench.repository):
                indexed.append(words[0])
                if len(indexed) == 2:
                    raise KeyboardInterrupt
            return real(repository, *words, **options)

        monkeypatch.setattr(restic_repository, "run", run)
        monkeypatch.setattr(restic_heal, "clear", lambda _repository: None)
        with pytest.raises(KeyboardInterrupt):
            bench.engine().verify(100)
        monkeypatch.undo()
        assert all(row.healed == row.damaged for row in bench.engine().verify(100))
        bench.engine().tidy()
        assert not list(bench.repository.glob(".gbs-*"))
        assert "no errors were found" in bench.restic("check", "--read-data")

    def test_folders_are_healed_by_the_cache(self, bench: Bench) -> None:
        shared_pack(bench)
        packs = {path.name: path for path in (bench.repository / "data").rglob("*") if path.is_file()}
        cached = [path.name for path in (bench.store.root / "restic" / "cache").glob("*/data/*/*")]
        flip(packs[cached[0]], 100)
        assert all(row.damaged and row.healed == row.damaged for row in bench.engine().verify(100))
        assert "no errors were found" in bench.restic("check", "--read-data", "--no-cache")

    def test_so_much_damage_that_not_all_of_it_is_told_names_no_pack_and_blames_every_point(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RESTIC_PACK_SIZE", "4")
        monkeypatch.setattr(process, "TAIL_BYTES", 1000)  # how large restic's packs become is not certain
        bench.kept(1)
        noise(bench, 2, 64)
        bench.sync_and_rotate()
        packs = [path for path in (bench.repository / "data").rglob("*") if path.is_file()]
        large = [path for path in packs if path.stat().st_size > MIB]
        for path in large:
            flip(path, 1000)
        said = subprocess.run(bench.argv("check", "--read-data"), check=False, capture_output=True).stderr
        assert len(large) > said[-process.TAIL_BYTES :].count(b"want "), "the end of it has not all of them"
        assert [row.damaged[0].partition(":")[0] for row in bench.engine().verify(100)] == ["the repository"] * 2

    def test_night_that_cannot_be_read_whole_is_no_snapshot(self, bench: Bench) -> None:
        bench.kept(1)
        bench.night(2)
        (bench.source / "facts.json").unlink()
        (bench.source / "facts.json").symlink_to("/proc/self/mem")
        with pytest.raises((CommandFailed, IntegrityError)):
            bench.engine().sync(bench.manifest, nothing)
        assert bench.restic("snapshots").count("web1 ") == 1

    def test_path_that_cannot_be_brought_back_is_told_every_night(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        bench = Bench("restic", tmp_path_factory.mktemp("e"))
        made = bench.folder / "t"
        made.mkdir()
        make_tree(made)
        bench.tree(1, made)
        (warning,) = bench.engine().sync(bench.manifest, nothing)
        assert "is too long for restic" in warning
        bench.engine().rotate()
        with pytest.raises(CommandFailed, match="restic restore"):
            bench.engine().open("daily.0", nothing)
        assert not any(bench.store.opened("web1").glob("*"))

    def test_sample_with_odd_names_is_brought_and_large_files_are_not(self, bench: Bench) -> None:
        odd = {f"[{name}]*?\\": content for name, content in plain_tree().items()}
        odd["large"] = b"plain text " * 500_000
        assert stage2(bench, 1, odd) == ()
        bench.content(2, encrypted(odd))
        change = bench.judged().change
        assert change is not None
        assert (change.changed, change.scrambled) == (FILES + 1, FILES)
        assert not any(bench.store.root.glob(".sample-*"))

    def test_snapshot_of_a_held_night_that_is_gone_is_told(self, bench: Bench) -> None:
        assert stage2(bench, 1, plain_tree()) == ()
        assert stage2(bench, 2, encrypted(plain_tree()))
        ids = [row["id"] for row in json.loads(bench.restic("snapshots", "--json", "--tag", f"night-{id_of(2)}"))]
        bench.restic("forget", *ids)
        with pytest.raises(IntegrityError, match=f"of night {id_of(2)}"):
            bench.accept()
        assert (bench.waiting(), bench.days()) == ([2], {"daily.0": 1})

    @pytest.mark.parametrize("lost", ["packs", "index", "file"])
    def test_manifest_that_is_damaged_or_gone_is_no_backup(self, bench: Bench, lost: str) -> None:
        bench.kept(1)
        shutil.rmtree(bench.store.root / "restic")
        for path in (bench.repository / "data").rglob("*") if lost == "packs" else ():
            if path.is_file():
                path.chmod(0o600)
                path.write_bytes(b"x" * path.stat().st_size)
        if lost == "index":
            shutil.rmtree(bench.repository / "index")
        if lost == "file":
            tags = ("--tag", f"gbs-point,night-{id_of(1)}")
            (snapshot,) = json.loads(bench.restic("snapshots", "--json"))
            bench.restic("forget", snapshot["id"])
            subprocess.run(bench.argv("backup", "--quiet", *tags, "facts.json"), cwd=bench.source, check=True)
        assert bench.engine().points() == {"daily.0": None}

    def test_manifest_that_was_not_read_for_another_reason_is_none_that_is_lost(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.kept(1)
        shutil.rmtree(bench.store.root / "restic")
        program = bench.folder / "bin" / "restic"
        program.parent.mkdir()
        killed = 'case " $* " in *" dump "*) kill -9 $$ ;; esac'
        program.write_text(f'#!/bin/sh\n{killed}\nexec {shutil.which("restic")} "$@"\n')
        program.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
            with pytest.raises(CommandFailed, match="restic dump failed with status -9"):
                bench.engine().points()
        assert bench.days() == {"daily.0": 1}

    def test_damaged_copy_of_a_manifest_in_the_store_is_made_anew(self, bench: Bench) -> None:
        bench.kept(1)
        (copy,) = (bench.store.root / "restic" / "web1").glob("*.json")
        copy.write_text("{")
        assert bench.days() == {"daily.0": 1}
        assert NightManifest.model_validate_json(copy.read_text()).id == id_of(1)

    def test_file_that_a_point_does_not_have_is_none(self, bench: Bench) -> None:
        bench.kept(1)
        assert bench.engine().read("daily.0", "data/same") == b"always"
        assert bench.engine().read("daily.0", "data/nowhere") is None


class TestCommand:
    """What only a vendor's commands have."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        return Bench("command", tmp_path)

    @pytest.mark.parametrize(
        ("status", "outcome"), [*CODES.items(), (1, "failed"), (20, "failed"), (137, "failed"), (255, "failed")]
    )
    def test_exit_status_means_what_the_table_says(self, bench: Bench, status: int, outcome: str) -> None:
        bench.kept(1)
        bench.night(2)
        script = bench.folder / "backup"
        script.write_text(f'#!/bin/sh\necho "VLT {KEY}" >&2\ntouch "$VAULT_HOME/web1/$1.tar"\nexit {status}\n')
        script.chmod(0o755)
        engine = bench.engine(backup=[str(script), "{night}", "{source}"])
        if outcome in ("ok", "warning"):
            warnings = engine.sync(bench.manifest, nothing)
            assert warnings == () if outcome == "ok" else "VLT ***" in warnings[0]
            return
        kind = {"retry": NotNow, "damaged": IntegrityError, "failed": CommandFailed}[outcome]
        with pytest.raises(kind, match=rf"status {status}\)?: VLT \*\*\*"):
            engine.sync(bench.manifest, nothing)
        assert bench.days() == {"daily.0": 1}

    def test_values_are_read_by_no_shell_and_not_twice(self, bench: Bench) -> None:
        bench.night(1)
        there = bench.folder / "said"
        script = bench.folder / "backup"
        script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{there}\ntouch "$VAULT_HOME/web1-$1.tar"\n')
        script.chmod(0o755)
        odd = "$(touch pwned); {night} `id` {unknown"
        engine = bench.engine(backup=[str(script), "{night}", "{source}", odd], list=["echo", id_of(1)])
        engine.sync(bench.manifest, nothing)
        expected = odd.replace("{night}", id_of(1))
        assert there.read_text().splitlines() == [id_of(1), str(bench.source), expected]

    def test_backup_that_is_not_listed_is_none(self, bench: Bench) -> None:
        bench.night(1)
        with pytest.raises(IntegrityError, match=f"a listing with {id_of(1)}"):
            bench.engine(backup=["true", "{night}", "{source}"]).sync(bench.manifest, nothing)
        assert bench.engine().points() == {}

    def test_without_forget_the_vendor_keeps_what_it_likes(self, bench: Bench) -> None:
        engine = bench.engine(forget=[])
        for number in (1, 2, 3, 4):
            bench.night(number)
            assert bench.sync_and_rotate(engine) == ["daily"]
        assert not engine.forgets
        assert list(bench.days().values()) == [4, 3, 1, 2]
        (bench.vault / "web1" / f"{id_of(1)}.tar").unlink()
        assert list(bench.days().values()) == [4, 3, 2]
        assert [row.damaged for row in engine.verify(100)] == [(), (), ()]

    def test_application_that_fails_to_verify_says_nothing_about_the_nights(self, bench: Bench) -> None:
        bench.kept(1)
        with pytest.raises(CommandFailed, match="status 1"):
            bench.engine(verify=["false", "{night}"]).verify(100)

    def test_newest_point_whose_listing_is_damaged_is_passed_over(self, bench: Bench) -> None:
        for number in (1, 2):
            assert stage2(bench, number, plain_tree()) == ()
        (bench.root / ".nights" / f"{id_of(2)}.SHA256SUMS").write_text("")
        bench.content(3, encrypted(plain_tree()))
        found = bench.judged()
        assert found.change is not None
        assert (found.held, found.change.against, found.damaged) == (True, id_of(1), ("daily.0",))

    def test_night_that_the_vendor_lost_is_told(self, bench: Bench) -> None:
        bench.kept(1)
        bench.kept(2)
        (bench.vault / "web1" / f"{id_of(1)}.tar").unlink()
        rows = {row.night: row.damaged for row in bench.engine().verify(100)}
        assert rows == {id_of(2): (), id_of(1): ("vault does not list it any more",)}

    def test_without_verify_nights_are_restored_and_read(self, bench: Bench) -> None:
        noise(bench, 1, 3)
        bench.sync_and_rotate()
        engine = bench.engine(verify=[])
        assert [row.damaged for row in engine.verify(100)] == [()]
        bench.damage()
        assert [row.damaged for row in engine.verify(100)] == [("/noise",)]
        assert not any(bench.store.opened("web1").glob("*"))

    def test_busy_drive_is_tried_again_by_whoever_called(self, bench: Bench) -> None:
        bench.night(1)
        (bench.vault / "busy").touch()
        with pytest.raises(NotNow, match="drive in use") as caught:
            bench.engine().sync(bench.manifest, nothing)
        assert caught.value.transient
