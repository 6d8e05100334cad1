"""`make bench`: stage 1 of a client beside a bare rsync of the same folder, in turn, in one run.

Two clients behind one sshd: 100,000 small files, and one large file. All pull with the very options that GBS pulls
with, over the same ssh. "Bare" is rsync alone: nothing is flushed, nothing hashed. "By hand" is rsync and what GBS does
besides that a careful person would: a sha256 of every file that came, into a listing (openssl, which is far quicker
than Debian's sha256sum), syncfs, a rename, and the old tree removed. What is ours only: the gates, reading the last
listing, a look at every file's inode, manifests, task runs. Prefect's own start is not counted: ours is from the start
of the stage to its end, as the report says.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tasks.drivers.rsync import Wanted, pull_argv
from tasks.model.outcome import Outcome
from tasks.model.platform import PROFILES, Platform
from tests.bench import run
from tests.bench.gauges import timed
from tests.lab.fleet import Fleet, fleet_of
from tests.lab.process import LabError
from tests.lab.progress import phase, say

FILES, FILE_BYTES = 100_000, 4096
LARGE_BYTES = 4 << 30
LIST = (
    'cd "$1"/data; find . -type f -links 1 -print0 | xargs -0 -r -n 1000 openssl dgst -sha256 -r >../SHA256SUMS;'
    ' sync -f ../SHA256SUMS; test ! -e "$2" || mv "$2" "$2".old; mv "$1" "$2"; sync "$2"/..; rm -rf "$2".old'
)
"""A listing of what is not linked to last night's, all flushed, put in the place of last night's."""
Work = Callable[[], float]


class Bench:
    """A client, pulled by hand and by GBS."""

    def __init__(self, fleet: Fleet, client: str) -> None:
        self.fleet, self.client = fleet, client
        self.hand = fleet.directory / "by-hand"
        self.night = self.hand / "night"

    def bare(self, folder: Path, last: Path | None = None) -> float:
        """Seconds of rsync alone into `folder`, unchanged files linked to `last`."""
        folder.mkdir(parents=True, exist_ok=True)
        wanted = Wanted(
            [self.fleet.folder(self.client)],
            exclude=PROFILES[Platform.LINUX].exclude,
            link_dests=[last] if last else [],
        )
        argv = pull_argv(self.fleet.target(self.client, self.fleet.system.ssh_port), wanted, folder)
        return timed(lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL))

    def checks(self, new: Path) -> float:
        """Seconds of what follows rsync by hand: `new` becomes the night."""
        argv = ["bash", "-euo", "pipefail", "-c", LIST, "bash", str(new), str(self.night)]
        return timed(lambda: subprocess.run(argv, check=True))

    def by_hand(self) -> float:
        """Seconds of a night by hand with the checks."""
        new, last = self.hand / "new", self.night / "data"
        return self.bare(new / "data", last if last.exists() else None) + self.checks(new)

    def ours(self) -> float:
        """Seconds of our stage 1."""
        if self.fleet.begin("run", "overnight", "--client", self.client).wait() != 0:
            raise LabError(f"gbs run overnight failed; see {self.fleet.directory}/gbs.log")
        (result,) = self.fleet.report("overnight")
        if result.outcome is not Outcome.OK:
            raise LabError(f"overnight of {self.client}: {result.outcome}: {result.reasons}")
        return result.duration_s

    def forget(self) -> None:
        """Remove all nights, so that the next one is the first."""
        shutil.rmtree(self.hand, ignore_errors=True)
        shutil.rmtree(self.fleet.store.overnight(self.client), ignore_errors=True)

    def first_nights(self, rounds: int) -> dict[str, list[float]]:
        """Everything travels."""
        works: dict[str, Work] = {
            "bare rsync": lambda: self.bare(self.hand / "bare"),
            "rsync and the same checks by hand": self.by_hand,
            "ours": self.ours,
        }
        return in_turn(works, rounds, self.forget)

    def quiet_nights(self, rounds: int) -> dict[str, list[float]]:
        """Nothing has changed since the first night, which is made where it is not there."""
        if not self.night.exists():
            for work in (lambda: self.bare(self.hand / "bare"), self.by_hand, self.ours):
                work()
        works: dict[str, Work] = {
            "bare rsync into the tree of last night": lambda: self.bare(self.hand / "bare"),
            "bare rsync into a new tree, links": lambda: self.bare(self.hand / "linked", self.night / "data"),
            "the same, and the same checks by hand": self.by_hand,
            "ours": self.ours,
        }
        return in_turn(works, rounds, lambda: shutil.rmtree(self.hand / "linked", ignore_errors=True))


def in_turn(works: Mapping[str, Work], rounds: int, before: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds of each, round by round, each first in its turn: what one leaves behind may slow the disk for others."""
    took: dict[str, list[float]] = {name: [] for name in works}
    order = [*works]
    for number in range(rounds):
        with phase(f"round {number + 1} of {rounds}"):
            before()
            for name in order:
                subprocess.run(["sync"], check=True)
                took[name].append(works[name]())
                say(f"{name}: {took[name][-1]:.2f} s")
        order.append(order.pop(0))
    return took


def table(title: str, took: Mapping[str, Sequence[float]], rounds: int) -> None:
    """Medians, and ours as a multiple of each."""
    print(f"\n{title}, medians of {rounds} rounds in turn")
    print("| | s | ours is … times it | of each round |")
    print("|---|---|---|---|")
    ours = took["ours"]
    for name, seconds in took.items():
        ratio = statistics.median(mine / peer for mine, peer in zip(ours, seconds, strict=True))
        each = ", ".join(f"{one:.2f}" for one in seconds)
        print(f"| {name} | {statistics.median(seconds):.2f} | {ratio:.2f} | {each} |")


def main() -> int:
    """Run all of it and print the tables."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.files", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--client", choices=["many", "large"], help="only this one of the two")
    parser.add_argument("--night", choices=["first", "quiet"], help="only this one of the two")
    parser.add_argument("--files", type=int, default=FILES, help="so many small ones")
    options = parser.parse_args()
    sizes = {"many": (options.files, FILE_BYTES), "large": (1, LARGE_BYTES)}
    clients = [options.client] if options.client else list(sizes)
    with fleet_of(f"test-bench-files-{os.getpid()}") as fleet:
        with phase("clients and Prefect server"):
            for client in clients:
                fleet.make_files(client, *sizes[client])
            fleet.start()
            fleet.declare(dict.fromkeys(clients, fleet.system.ssh_port))
        if fleet.begin("run", "prepare").wait() != 0:
            raise LabError("gbs run prepare failed")
        for client in clients:
            bench = Bench(fleet, client)
            count, size_bytes = sizes[client]
            what = f"{count:,} files of {size_bytes >> 10:,} KiB"
            if options.night != "quiet":
                table(f"First night, {what}", bench.first_nights(options.rounds), options.rounds)
            if options.night != "first":
                table(f"Nothing changed, {what}", bench.quiet_nights(options.rounds), options.rounds)
            bench.forget()
    return 0


if __name__ == "__main__":
    run(main)
