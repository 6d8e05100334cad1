"""A night of real clients behind an sshd: one that is dead and one that crawls delay nobody else."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from flows.side_by_side import AT_ONCE
from tests.lab.fleet import Fleet, fleet_of
from tests.lab.link import dead_port

# More than have a turn at once beside the two: the last of them wait for one.
GOOD = [f"good-{number}" for number in range(AT_ONCE + 1)]
CRAWL_BYTES_PER_S = 4096


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Clients with a few files, one that has more than a crawling link carries in minutes, one that is not there."""
    with fleet_of(f"test-fleet-{os.getpid()}") as fleet, dead_port() as nobody:
        for client in GOOD:
            fleet.make_files(client, 3, 1000)
        fleet.make_files("crawling", 40, 100_000)
        fleet.start()
        far = fleet.link(bytes_per_s=CRAWL_BYTES_PER_S)
        # They come first: they have their turns before any other.
        fleet.declare({"dead": nobody, "crawling": far} | dict.fromkeys(GOOD, fleet.system.ssh_port))
        yield fleet


def _wait_until(true: Callable[[], bool], run: subprocess.Popen[bytes], deadline_s: float = 120) -> None:
    ends_at = time.monotonic() + deadline_s
    while not true():
        assert run.poll() is None, "the night ended before"
        assert time.monotonic() < ends_at, "it did not come to that"
        time.sleep(0.1)


def test_dead_and_crawling_clients_others_are_in_the_permanent_store_before_either_ends(fleet: Fleet) -> None:
    run = fleet.begin("run", "nightly")
    try:
        kept = [fleet.permanent / client / "daily.0" / "manifest.json" for client in GOOD]
        _wait_until(lambda: all(path.exists() for path in kept), run)
        _wait_until(fleet.store.staging("crawling").exists, run)
        assert not fleet.store.overnight("crawling").exists()
        said = (fleet.directory / "gbs.log").read_text()
        assert "facts of dead ..." in said
        assert "prepare of dead: " not in said, "it has ended: it was given up"
    finally:
        run.kill()
        run.wait()
    for client in GOOD:
        kept_files = f"{fleet.permanent}/{client}/daily.0/data{fleet.folder(client)}"
        subprocess.run(["diff", "-r", str(fleet.outside(client)), kept_files], check=True)
