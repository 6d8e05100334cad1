"""`make bench`: a night of 200 clients, 8 side by side, beside the same 200 one after the other without GBS.

All clients lie behind one sshd, a round trip of 20 ms away (tests/lab/link.py), each with 200 files. Ours is the whole
`nightly`: facts, files, restore points, report; from the start of its first stage to the end of its last, as the report
says (Prefect's own start is not counted). The peers are loops in night_by_hand.sh: rsnapshot straight from the clients,
which makes no facts, no sha256 and flushes nothing; and the same work as ours. What is ours only: gates, locks,
manifests, the proof of the permanent store, task runs.

Then a night of ten clients, with and without a dead one and one that crawls: when the ten are done.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import statistics
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from tasks.model.outcome import Outcome, StageResult
from tasks.model.ssh_target import ssh_argv
from tests.bench import run
from tests.bench.gauges import Memory, memory_of, timed
from tests.bench.shown import Shown, shown
from tests.lab.fleet import Fleet, fleet_of
from tests.lab.link import dead_port
from tests.lab.process import LabError
from tests.lab.progress import phase, say

DELAY_S = 0.01
FILES, FILE_BYTES = 200, 16 << 10
GOOD = 10
CRAWL_FILES, CRAWL_BYTES_PER_S = 16, 4096
BY_HAND = Path(__file__).with_name("night_by_hand.sh")


@dataclasses.dataclass
class Night:
    """A night of ours: how long, how much memory, what came of it, how the UI has it."""

    seconds: float
    memory: Memory
    results: tuple[StageResult, ...]
    shown: Shown


def by_gbs(fleet: Fleet) -> Night:
    """One nightly of all that is declared."""
    started = datetime.now(UTC)
    memory = memory_of(fleet.begin("run", "nightly"))
    results = fleet.report("nightly")
    if not results or min(result.started for result in results) < started:
        raise LabError(f"the night left no report; see {fleet.directory}/gbs.log")
    return Night(_until(results, results), memory, results, shown(fleet.server))


def _until(results: tuple[StageResult, ...], some: tuple[StageResult, ...]) -> float:
    """Seconds from the start of the night to the end of some of its stages."""
    began: datetime = min(result.started for result in results)
    return (max(result.ended for result in some) - began).total_seconds()


def by_hand(fleet: Fleet, what: str, clients: list[str], port: int) -> float:
    """Seconds of the loop over all clients."""
    login = fleet.directory / "login"
    target = fleet.target("fleet", port)
    login.write_text(f'#!/bin/sh\nexec {shlex.join(ssh_argv(target))} "$@"\n')
    login.chmod(0o755)
    argv = [str(BY_HAND), what, str(fleet.directory / what), str(login), *clients]
    return timed(lambda: subprocess.run(argv, check=True))


def _require_good(results: tuple[StageResult, ...]) -> None:
    bad = [f"{row.client} {row.stage}: {'; '.join(row.reasons)}" for row in results if row.outcome is not Outcome.OK]
    if bad:
        raise LabError(f"{len(bad)} stages did not go well: {bad[0]}")


def many(count: int, looped: int, rounds: int) -> None:
    """The night of many clients: a first one, then as many as there are rounds in which nothing has changed.

    The loops go over the first `looped` clients; what they take is scaled to all, which are alike.
    """
    clients = [f"client-{number:03}" for number in range(count)]
    with fleet_of(f"test-bench-fleet-{os.getpid()}") as fleet:
        with phase(f"{count} clients and Prefect server"):
            for client in clients:
                fleet.make_files(client, FILES, FILE_BYTES)
            fleet.start()
            port = fleet.link(delay_s=DELAY_S)
            fleet.declare(dict.fromkeys(clients, port))
        for number in range(1 + rounds):
            title = "First night" if number == 0 else f"Nothing changed, round {number} of {rounds}"
            with phase(title):
                subprocess.run(["sync"], check=True)
                ours = by_gbs(fleet)
                _require_good(ours.results)
                peers = {
                    what: by_hand(fleet, what, clients[:looped], port) * count / looped
                    for what in ("rsnapshot", "same-work")
                }
            by_loops = "" if looped == count else f", loops over {looped} of them and scaled"
            _table(f"{title}: {count} clients, {FILES} files of {FILE_BYTES >> 10} KiB each{by_loops}", ours, peers)


def _table(title: str, ours: Night, peers: dict[str, float]) -> None:
    print(f"\n{title}")
    print("| | s | ours is … times as fast |")
    print("|---|---|---|")
    print(f"| ours, 8 side by side | {ours.seconds:.1f} | 1.00 |")
    for what, seconds in peers.items():
        print(f"| {what}, one after the other | {seconds:.1f} | {seconds / ours.seconds:.2f} |")
    print(f"\nMemory: the run {ours.memory.own_mib:.0f} MiB, its children {ours.memory.children_mib:.0f} MiB")
    say(ours.shown.words)


def two_bad(rounds: int) -> None:
    """Ten good clients, alone and together with one that is dead and one that crawls."""
    good = [f"good-{number}" for number in range(GOOD)]
    took: dict[str, list[float]] = {"alone": [], "beside the two": [], "crawling": [], "dead": []}
    with fleet_of(f"test-bench-bad-{os.getpid()}") as fleet, dead_port() as nobody:
        for client in good:
            fleet.make_files(client, FILES, FILE_BYTES)
        fleet.make_files("crawling", CRAWL_FILES, FILE_BYTES)
        fleet.start()
        near, far = fleet.link(delay_s=DELAY_S), fleet.link(delay_s=DELAY_S, bytes_per_s=CRAWL_BYTES_PER_S)
        for number in range(rounds):
            with phase(f"round {number + 1} of {rounds}"):
                fleet.declare(dict.fromkeys(good, near))
                alone = by_gbs(fleet)
                _require_good(alone.results)
                took["alone"].append(alone.seconds)
                # The two come first: they have their turns while the others wait for one.
                fleet.declare({"dead": nobody, "crawling": far} | dict.fromkeys(good, near))
                results = by_gbs(fleet).results
                for name in ("crawling", "dead"):
                    took[name].append(_until(results, tuple(row for row in results if row.client == name)))
                of_good = tuple(row for row in results if row.client in good)
                _require_good(of_good)
                took["beside the two"].append(_until(results, of_good))
            say(", ".join(f"{name}: {seconds[-1]:.1f} s" for name, seconds in took.items()))
    print(f"\nTen good clients, medians of {rounds} rounds in turn, seconds from the start of the night")
    print("| the ten, alone | the ten, beside the two | the crawling one | the dead one, given up |")
    print("|---|---|---|---|")
    print("| " + " | ".join(f"{statistics.median(seconds):.1f}" for seconds in took.values()) + " |")


def main() -> int:
    """Run all of it and print the tables."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.fleet", description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--looped", type=int, help="the loops go over so many of them only (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=["many", "two-bad"], help="only this one of the two")
    options = parser.parse_args()
    if options.part != "two-bad":
        many(options.clients, options.looped or options.clients, options.rounds)
    if options.part != "many":
        two_bad(options.rounds)
    return 0


if __name__ == "__main__":
    run(main)
