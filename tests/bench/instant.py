"""`make bench`: a VM that runs from the store at once, beside the plain boot of the same VM from a copy on its host.

From "go" to the guest's first write of its own, with disks of several sizes that hold the same. "Plain boot" is virsh
start of a copy that is there already: what brought it there is not counted. "Instant" is all of ours: exports, overlay,
definition, start. Then the move to the host while the guest runs, beside the rsync of the image that it stands for.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.drivers import libvirt_host, ssh
from tasks.model.ssh_target import ssh_argv
from tests.bench import run
from tests.bench.gauges import timed
from tests.lab.instant_guest import Instantly, make_image
from tests.lab.kvm_host import KvmHost
from tests.lab.leftovers import LABS
from tests.lab.process import LabError
from tests.lab.progress import phase, say
from tests.lab.sshd import make_key
from tests.lab.tiny_guest import last_record

GIB = (4, 16, 64)
DEADLINE_S = 120
COLUMNS = ("plain boot", "instant", "move", "rsync of the image")


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


def wait_for_write(vm: Instantly, last: int) -> None:
    """Wait until the guest has written a record after `last`."""
    ends_at = time.monotonic() + DEADLINE_S
    while vm.record_now() <= last:
        if time.monotonic() > ends_at:
            raise LabError(f"{vm.name} wrote nothing in {DEADLINE_S} s")
        time.sleep(0.05)


def measure(vm: Instantly) -> dict[str, float]:
    """Seconds of each, of one VM: instant, moved; then booted plainly from the disk that it has by then."""
    took: dict[str, float] = {}

    def go() -> None:
        vm.start()
        wait_for_write(vm, 0)

    def plain() -> None:
        vm.kvm.virsh("start", vm.name)
        wait_for_write(vm, last)

    took["instant"] = timed(go)
    took["move"] = timed(vm.keep)
    vm.kvm.virsh("destroy", vm.name)
    last = last_record(vm.overlay(), "qcow2")
    took["plain boot"] = timed(plain)
    copy = f"{vm.record.disks[0].overlay}.copy"
    argv = ["rsync", "--sparse", "-e", shlex.join(ssh_argv(vm.target)), str(vm.image), f"{vm.target.address}:{copy}"]
    took["rsync of the image"] = timed(lambda: subprocess.run(argv, check=True))
    vm.kvm.run(["rm", copy])
    return took


def main() -> int:
    """Run all sizes in turn, print the medians."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.instant", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gib", type=int, nargs="+", default=GIB)
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
                            took[gib].append(measure(vm))
                    finally:
                        vm.tear_down()
                    say(", ".join(f"{name} {took[gib][-1][name]:.2f} s" for name in COLUMNS))
    print(f"\nFrom go to the guest's first write, medians of {options.rounds} rounds in turn, seconds")
    print("| virtual size | " + " | ".join(COLUMNS) + " | instant is … times the plain boot |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for gib, rounds in took.items():
        medians = {name: statistics.median(one[name] for one in rounds) for name in COLUMNS}
        ratio = statistics.median(one["instant"] / one["plain boot"] for one in rounds)
        print(f"| {gib} GiB | " + " | ".join(f"{medians[name]:.2f}" for name in COLUMNS) + f" | {ratio:.2f} |")
    return 0


if __name__ == "__main__":
    run(main)
