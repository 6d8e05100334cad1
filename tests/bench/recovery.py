"""`make bench`: a lost VM from "go" to "probed", by GBS and by virtnbdrestore, in turn.

Both bring back the lab's Debian guest, whose disk and definition are gone. The peer's backup was taken by virtnbdbackup
on the host just before the guest was lost; restored, defined, started, and asked until ssh and both databases answer,
it has its files of that moment. Ours has those of last night: "go" is the operator's command, and its time holds the
start of Prefect's flow run, the proof of the image and of the night, the update, and the load of the databases' dumps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench import run
from tests.bench.files import in_turn, table
from tests.bench.gauges import timed
from tests.lab.demo import Demo
from tests.lab.progress import say

_FOLDER = "/var/lib/libvirt/images/virtnbd"
"""On the KVM host: its backup and, on the same file system as ours, what it restores."""


class Bench:
    """The lab's guest, which is lost and comes back."""

    def __init__(self, demo: Demo) -> None:
        self.demo, self.host = demo, demo.lab.kvm1
        self.steps: list[dict[str, float]] = []

    def prepare(self) -> None:
        """An image and two nights of GBS, and a backup by virtnbdbackup."""
        self.demo.set_up()
        self.demo.nights()
        shutil.rmtree(self.outside(_FOLDER), ignore_errors=True)
        argv = ["virtnbdbackup", "-d", "web1", "-l", "full", "-o", f"{_FOLDER}/backup", "-n"]
        self.host.run([*argv, "--scratchdir", "/var/tmp"], timeout_s=900)
        self.host.virsh("checkpoint-delete", "web1", "virtnbdbackup.0", "--metadata")

    def outside(self, path: str) -> Path:
        """Where the machine sees a file of the host."""
        return Path(f"{self.host.directory}/root{path}")

    def after_loss(self, recovery: Callable[[], None]) -> float:
        """Seconds that a recovery takes of the guest whose definition and disks are gone."""
        self.demo.disaster()
        shutil.rmtree(self.outside(f"{_FOLDER}/restored"), ignore_errors=True)
        return timed(recovery)

    def ours(self) -> None:
        """`gbs recover vm web1`, to the end of its probes."""
        done = json.loads(self.demo.gbs("gbs", "recover", "vm", "web1", "--yes", "--json", capture=True))
        self.steps.append({step["name"]: step["seconds"] for step in done["steps"]})

    def peer(self) -> None:
        """virtnbdrestore, define, start, and wait for ssh and the databases."""
        argv = ["virtnbdrestore", "-i", f"{_FOLDER}/backup", "-o", f"{_FOLDER}/restored", "-n"]
        self.host.run([*argv, "-c", "-D", "-N", "web1"], timeout_s=900)
        self.host.virsh("start", "web1")
        self.demo.lab.web1.wait_until_up()


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.recovery", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    demo = Demo("bench-recovery")
    with contextlib.ExitStack() as ends:
        ends.callback(demo.down)
        bench = Bench(demo)
        bench.prepare()
        works = {"virtnbdrestore and boot": bench.peer, "ours": bench.ours}
        lost = {name: partial(bench.after_loss, work) for name, work in works.items()}
        took = in_turn(lost, options.rounds, lambda: None)
        table("A lost VM, from the command to its probes", took, options.rounds)
        for steps in bench.steps:
            say("ours: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in steps.items()))
    return 0


if __name__ == "__main__":
    run(main)
