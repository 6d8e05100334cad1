"""`make bench`: a VM that runs from the store at once, beside the plain boot of the same VM from a copy on its host.

From "go" to the guest's first write of its own, with disks of several sizes that hold the same. "Plain boot" is virsh
start of a copy that is there already: what brought it there is not counted. "Instant" is all of ours: exports, overlay,
definition, start. Then the move to the host while the guest runs. All include how long it takes to see the write.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.drivers import libvirt_host, ssh
from tests.bench import run
from tests.bench.gauges import timed
from tests.lab.instant_guest import Instantly, make_image
from tests.lab.kvm_host import KvmHost
from tests.lab.leftovers import LABS
from tests.lab.process import LabError
from tests.lab.progress import phase, say
from tests.lab.sshd import make_key
from tests.lab.tiny_guest import TinyGuest, last_record

GIB = (4, 16, 64)
DEADLINE_S = 120
PLAIN, INSTANT, MOVE = COLUMNS = ("plain boot", "instant", "move")


@contextmanager
def kvm_host(folder: Path) -> Iterator[KvmHost]:
    """A KVM host of its own."""
    folder.mkdir(parents=True)
    host = KvmHost("kvm1", folder / "kvm1", make_key(folder / "id_ed25519", "gbs bench"))
    try:
        host.start()
        yield host
    finally:
        host.remove()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_write(last_written: Callable[[], int]) -> None:
    """Wait until the guest has written its first record."""
    ends_at = time.monotonic() + DEADLINE_S
    while last_written() == 0:
        if time.monotonic() > ends_at:
            raise LabError(f"the guest wrote nothing in {DEADLINE_S} s")
        time.sleep(0.05)


def plain_boot(kvm: KvmHost, size_bytes: int) -> float:
    """Seconds of a guest whose disk is on its host."""
    guest = TinyGuest(kvm, f"plain-{size_bytes >> 30}", size_bytes=size_bytes)
    guest.define()

    def go() -> None:
        guest.start()
        wait_for_write(lambda: last_record(guest.outside(guest.disks[0].path), "qcow2"))

    try:
        return timed(go)
    finally:
        guest.destroy()


def instant_boot(vm: Instantly) -> float:
    """Seconds of one whose disk is in the store."""

    def go() -> None:
        vm.start()
        wait_for_write(vm.record_now)

    return timed(go)


def main() -> int:
    """Run all sizes in turn, print the medians."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.instant", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gib", type=int, nargs="+", default=GIB)
    parser.add_argument("--move-up-to", type=int, default=64, metavar="GIB", help="move none that is larger")
    options = parser.parse_args()
    took: dict[int, list[dict[str, float]]] = {gib: [] for gib in options.gib}
    folder = LABS / f"test-bench-instant-{os.getpid()}"
    with kvm_host(folder) as kvm:
        target = kvm.target(folder / "id_ed25519")
        with libvirt_host.connect(target) as host, ssh.connect(target) as shell:
            for number in range(options.rounds):
                for gib in options.gib:
                    vm = make_image(host, shell, target, kvm, folder, size_bytes=gib << 30, hashed=False)
                    try:
                        with phase(f"round {number + 1} of {options.rounds}: {gib} GiB"):
                            took[gib].append({PLAIN: plain_boot(kvm, gib << 30), INSTANT: instant_boot(vm)})
                            took[gib][-1][MOVE] = timed(vm.keep) if gib <= options.move_up_to else math.nan
                    finally:
                        vm.tear_down()
                    say(", ".join(f"{name} {took[gib][-1][name]:.2f} s" for name in COLUMNS))
    print(f"\nFrom go to the guest's first write, medians of {options.rounds} rounds in turn, seconds")
    print("| virtual size | " + " | ".join(COLUMNS) + " | instant is … times the plain boot |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for gib, rounds in took.items():
        medians = {name: statistics.median(one[name] for one in rounds) for name in COLUMNS}
        ratio = statistics.median(one[INSTANT] / one[PLAIN] for one in rounds)
        print(f"| {gib} GiB | " + " | ".join(f"{medians[name]:.2f}" for name in COLUMNS) + f" | {ratio:.2f} |")
    return 0


if __name__ == "__main__":
    run(main)
