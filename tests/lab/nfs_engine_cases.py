"""What runs in a guest of nfs_guest.py: the engines other than rsnapshot, whose store is a real NFSv4.2 mount."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tasks.drivers.permanent import PermanentPlace, prove
from tasks.errors import GbsError, StoreSilent
from tests.lab.engine_bench import KEY, POLICY, Bench, nothing
from tests.lab.nfs_sites import FAR, answers, cable, wait_until

KINDS = ("restic", "command")
MIB = 1 << 20


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, place: PermanentPlace, tmp_path: Path) -> Bench:
    prove(place)
    made = Bench(request.param, tmp_path, POLICY.model_copy(update={"transfer_deadline_s": 60}), far=place.path)
    made.far = place
    made.vault = tmp_path / "vault"  # the application's own, wherever that is
    made.vault.mkdir()
    made.secret("environment", f"VAULT_HOME={made.vault}\nVAULT_KEY={KEY}")
    return made


def large_night(bench: Bench, number: int, mib: int) -> None:
    """A night that takes a while."""
    bench.night(number)
    (bench.source / "data" / "large").write_bytes(os.urandom(mib * MIB))
    bench.tree_again(number)


def test_nights_are_kept_given_up_read_and_brought_back(bench: Bench) -> None:
    for number in (1, 2, 3, 10):
        assert bench.kept(number) in (["daily"], ["weekly", "daily"])
    assert bench.nights() == {"daily.0": 10, "daily.1": 3, "weekly.0": 1}
    assert [row.damaged for row in bench.engine().verify(100)] == [(), (), ()]


def test_damage_at_the_server_is_found_over_the_mount(place: PermanentPlace, tmp_path: Path) -> None:
    prove(place)
    bench = Bench("restic", tmp_path, far=place.path)
    bench.far = place
    large_night(bench, 1, 2)
    bench.sync_and_rotate()
    bench.night(2)
    bench.sync_and_rotate()
    bench.damage_file("large")
    damaged = {row.point: row.damaged for row in bench.engine().verify(100)}
    assert "/large" in damaged["daily.1"]
    assert "/large" not in damaged["daily.0"]


def begun(bench: Bench) -> bool:
    """Whether the backup writes; a repository lies at the server."""
    if bench.kind == "command":
        return any(path.stat().st_size for path in bench.vault.glob("web1/*.part"))
    return sum(path.is_file() for path in (FAR / "web1/restic/data").rglob("*")) > 4


def cut(work: Callable[[], object], bench: Bench) -> GbsError | None:
    """Pull the cable in the middle of `work`; what came of that."""
    outcome: list[GbsError | None] = []

    def run() -> None:
        try:
            work()
            outcome.append(None)
        except GbsError as exc:
            outcome.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    while not begun(bench):
        assert thread.is_alive(), outcome
        time.sleep(0.02)
    cable("down")
    thread.join(120)
    cable("up")
    thread.join(60)
    assert outcome, "it hangs"
    return outcome[0]


def test_cable_that_is_pulled_in_the_middle_of_a_backup_costs_no_point(bench: Bench) -> None:
    bench.kept(1)
    large_night(bench, 2, 60)
    error = cut(lambda: bench.engine().sync(bench.manifest, nothing), bench)
    assert error is not None
    assert error.transient, error
    wait_until(lambda: answers(bench.far))
    assert bench.nights() == {"daily.0": 1}
    assert bench.sync_and_rotate() == ["daily"]
    assert bench.nights() == {"daily.0": 2, "daily.1": 1}


def test_server_that_is_gone_makes_no_short_list_and_no_rotation(bench: Bench) -> None:
    bench.kept(1)
    bench.kept(2)
    bench.night(3)
    bench.engine().sync(bench.manifest, nothing)
    cable("down")
    with suppress(StoreSilent):  # what the mount remembers may still be told
        assert bench.days() == {"daily.0": 2, "daily.1": 1}
    with pytest.raises(StoreSilent):
        bench.engine().rotate()
    cable("up")
    wait_until(lambda: answers(bench.far))
    assert bench.days() == {"daily.0": 2, "daily.1": 1}
    assert bench.sync_and_rotate()
    assert bench.nights() == {"daily.0": 3, "daily.1": 2, "weekly.0": 1}
