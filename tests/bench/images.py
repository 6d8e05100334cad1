"""`make bench`: images beside nbdcopy, virtnbdbackup, rsync and qemu-img, of the same guest, in turn.

By the backup API of a running guest, and SnapLive's copy of the disk that lies still in its window. Ours, nbdcopy,
rsync and qemu-img read through the same ssh; virtnbdbackup runs on the KVM host itself and needs none. All are timed
until the data is flushed (fsync) and a sha256 of it is made: ours by chunks, the others' files by openssl, which is far
quicker than Debian's sha256sum; virtnbdbackup makes none. Its increments are chains: what it takes to have a bootable
disk of the newest one (virtnbdrestore) is part of it. Images lie on XFS, which has reflinks.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.drivers import backup_api, disk_copy, libvirt_host, ssh
from tasks.drivers.backup_survey import Parent
from tasks.drivers.disk_server import served
from tasks.drivers.image_order import Order
from tasks.drivers.journal import Journal
from tasks.drivers.snaplive import open_window
from tasks.drivers.snaplive_settle import close_window
from tasks.drivers.ssh import Shell
from tasks.drivers.ssh_forward import forwarded
from tasks.model.image_method import Wishes
from tasks.model.ssh_target import ssh_argv
from tasks.model.window import PlannedDisk
from tests.bench import run
from tests.lab.kvm_host import KvmHost
from tests.lab.leftovers import LABS
from tests.lab.process import LabError
from tests.lab.published import manifest_of
from tests.lab.sshd import make_key
from tests.lab.tiny_guest import TinyGuest

DATA_MIB = 768
DIRTY_MIB = (10, 41, 164)
"""1 % of 1, 4 and 16 GiB."""
WISHES = Wishes(min_free_bytes=1 << 20)


@dataclasses.dataclass
class Took:
    """Seconds by the clock, and processor seconds of us and our children (QEMU and sshd are not ours)."""

    wall_s: float
    cpu_s: float


def measured(work: Callable[[], object]) -> Took:
    """How long `work` takes."""
    began, cpu = time.monotonic(), _cpu_s()
    work()
    return Took(time.monotonic() - began, _cpu_s() - cpu)


def _cpu_s() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


class Bench:
    """A KVM host of the lab with one guest, and a file system with reflinks for images."""

    def __init__(self, size_gib: int, disk_format: str) -> None:
        self.folder = LABS / f"test-bench-{os.getpid()}"
        self.folder.mkdir(parents=True)
        self.host = KvmHost("bench", self.folder / "kvm1", make_key(self.folder / "id_ed25519", "bench"))
        self.guest = TinyGuest(self.host, "big", disk_format=disk_format, size_bytes=size_gib << 30)
        self.images = self.folder / "images"
        self.count = 0
        self._still: tuple[tuple[PlannedDisk, ...], Shell]

    def start(self) -> None:
        """Mount the images' file system, make the guest's disk with data in it, start it."""
        # Mounted first, so that the host sees it too.
        self.images.mkdir()
        image = self.folder / "images.xfs"
        subprocess.run(["truncate", "-s", "24G", str(image)], check=True)
        subprocess.run(["mkfs.xfs", "-q", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(self.images)], check=True)
        self.host.start()
        self.target = self.host.target(self.folder / "id_ed25519")
        self.guest.define()
        disk = self.guest.outside(self.guest.disks[0].path)
        script = f"qemu-io -f {self.guest.disk_format} -c 'write -P 0x5a 16M {DATA_MIB}M' {disk} >/dev/null"
        subprocess.run(["sh", "-c", script], check=True)
        self.guest.start()
        self.guest.wait_for_record(50)

    def stop(self) -> None:
        """End and remove all of it."""
        subprocess.run(["umount", str(self.images)], check=False)
        self.host.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ours(self, parent: Parent | None) -> Parent:
        """An image of ours: full without a parent."""
        self.count += 1
        folder = self.images / f"ours-{self.count}"
        folder.mkdir()
        with libvirt_host.connect(self.target) as host, ssh.connect(self.target) as shell:
            uuid = host.domain(self.guest.name).uuid
            journal = Journal(self.folder / "journal.jsonl")
            image_id = f"bench-{self.count}"
            order = Order(host, shell, self.target, journal, uuid, image_id, folder, WISHES, parent=parent)
            taken = backup_api.take(order)
            if (parent is None) != (taken.parent is None):
                raise LabError(f"not what was to be measured: {taken.disks[0].increment}")
            return Parent(folder, manifest_of(taken, folder, uuid))

    def nbdcopy(self) -> None:
        """The same copy by hand: libvirt's job, nbdcopy, fsync, a sha256."""
        virsh, socket, copied = self.host.virsh, "/run/gbs/bench", self.images / "nbdcopy.raw"
        copied.unlink(missing_ok=True)
        xml = f"<domainbackup mode='pull'><server transport='unix' socket='{socket}'/></domainbackup>"
        virsh("backup-begin", self.guest.name, "/dev/stdin", input_text=xml)
        try:
            with forwarded(self.target, {"vda": socket}) as local:
                argv = ["nbdcopy", "--flush", f"nbd+unix:///vda?socket={local['vda']}", str(copied)]
                subprocess.run(argv, check=True)
            _flush_and_hash(copied)
        finally:
            virsh("domjobabort", self.guest.name)
            while self.host.run(["virsh", "-q", "backup-dumpxml", self.guest.name], check=False).returncode == 0:
                time.sleep(0.05)

    def virtnbdbackup(self, level: str) -> None:
        """A backup by virtnbdbackup on the host; `inc` includes what makes a disk of the chain."""
        folder, restored = self.images / "virtnbd", self.images / "virtnbd-restored"
        if level == "full":
            shutil.rmtree(folder, ignore_errors=True)
        argv = ["virtnbdbackup", "-d", self.guest.name, "-l", level, "-o", str(folder), "-n"]
        self.host.run([*argv, "--scratchdir", "/var/tmp"], timeout_s=600)
        if level == "inc":
            shutil.rmtree(restored, ignore_errors=True)
            argv = ["virtnbdrestore", "-i", str(folder), "-o", str(restored), "-n"]
            self.host.run(argv, timeout_s=600)
        subprocess.run(["sync", "-f", str(folder)], check=True)

    def hash_of_virtnbdbackup(self) -> None:
        """The sha256 that virtnbdbackup does not make."""
        _hash(*self.images.glob("virtnbd/*.data"))

    @contextmanager
    def window(self) -> Iterator[None]:
        """The guest on an overlay while the block runs, its disk lying still."""
        with libvirt_host.connect(self.target) as host, ssh.connect(self.target) as shell:
            journal = Journal(self.folder / "window.jsonl")
            window = open_window(host, shell, journal, self.guest.name, "bench", min_free_bytes=1 << 20)
            self._still = window.disks, shell
            try:
                yield
            finally:
                close_window(host, shell, journal)

    def our_copy(self) -> None:
        """The window's disk as SnapLive copies it."""
        disks, shell = self._still
        folder = self._empty("ours-still")
        disk_copy.copy(shell, self.target, self.guest.name, disks, folder, WISHES)

    def rsync(self) -> None:
        """The same file by `rsync --sparse`, fsync, a sha256."""
        (disk,), _ = self._still
        copied = self._empty("rsync-still") / "disk"
        argv = ["rsync", "--sparse", "--whole-file", "--inplace", "-e", shlex.join(ssh_argv(self.target))]
        subprocess.run([*argv, f"{self.target.address}:{disk.base}", str(copied)], check=True)
        _flush_and_hash(copied)

    def qemu_img(self) -> None:
        """The same disk by `qemu-img convert` from a qemu-nbd, through the same ssh, fsync, a sha256."""
        (disk,), _ = self._still
        copied = self._empty("convert-still") / "disk.raw"
        with served(self.target, {"vda": disk.layers}) as sockets:
            argv = ["qemu-img", "convert", "-f", "raw", "-O", "raw", f"nbd+unix:///?socket={sockets['vda']}"]
            subprocess.run([*argv, str(copied)], check=True)
        _flush_and_hash(copied)

    def ssh_alone(self) -> None:
        """The allocated data of the same file through the same ssh, and thrown away."""
        (disk,), _ = self._still
        argv = [*ssh_argv(self.target), self.target.address, shlex.join(["cat", disk.base])]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)

    def write_alone(self) -> None:
        """As much written where images lie, and fsync."""
        argv = ["dd", "if=/dev/urandom", f"of={self.images}/random", "bs=4M", "count=4"]
        subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)
        script = f'for _ in $(seq {DATA_MIB // 16}); do cat "$1"/random; done | dd of="$1"/written bs=1M conv=fsync'
        subprocess.run(["sh", "-c", script, "sh", str(self.images)], check=True, stderr=subprocess.DEVNULL)

    def hash_alone(self) -> None:
        """As much hashed that lies in memory, by one thread."""
        argv = ["openssl", "dgst", "-sha256", str(self.images / "written")]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)

    def _empty(self, name: str) -> Path:
        folder = self.images / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def dirty(self, mib: int) -> None:
        """Write so many MiB, here and there in the guest's data, by QEMU's own qemu-io."""
        self.count += 1
        step = DATA_MIB // mib
        for part in [range(mib)[at : at + 50] for at in range(0, mib, 50)]:
            self.guest.change("vda", [f"write -P {self.count % 255} {16 + place * step}M 1M" for place in part])

    def forget(self) -> None:
        """No checkpoints of anybody, so that the next backup is a full one."""
        for name in self.host.virsh("checkpoint-list", self.guest.name, "--name").split():
            self.host.virsh("checkpoint-delete", self.guest.name, name)


def _flush_and_hash(path: Path) -> None:
    subprocess.run(["sync", str(path)], check=True)
    _hash(path)


def _hash(*paths: Path) -> None:
    subprocess.run(["openssl", "dgst", "-sha256", *map(str, paths)], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def bench_of(size_gib: int, disk_format: str = "qcow2") -> Iterator[Bench]:
    """A bench that is ended whatever happens."""
    bench = Bench(size_gib, disk_format)
    try:
        bench.start()
        yield bench
    finally:
        bench.stop()


def full_copies(rounds: int) -> None:
    """Full copies in turn: ours, nbdcopy, virtnbdbackup; of a guest that runs, and of one whose emulation is paused."""
    with bench_of(4) as bench:
        works: dict[str, Callable[[], object]] = {
            "ours": lambda: bench.ours(None),
            "nbdcopy + sha256": bench.nbdcopy,
            "virtnbdbackup, no sha256": lambda: bench.virtnbdbackup("full"),
        }
        for state in ("running", "paused"):
            if state == "paused":
                bench.host.virsh("suspend", bench.guest.name)
            took: dict[str, list[Took]] = {name: [] for name in (*works, "virtnbdbackup + sha256")}
            for _ in range(rounds):
                for name, work in works.items():
                    bench.forget()
                    subprocess.run(["sync"], check=True)
                    took[name].append(measured(work))
                bare, hashed = took["virtnbdbackup, no sha256"][-1], measured(bench.hash_of_virtnbdbackup)
                took["virtnbdbackup + sha256"].append(Took(bare.wall_s + hashed.wall_s, bare.cpu_s + hashed.cpu_s))
            what = f"{DATA_MIB} MiB of data on 4 GiB of a guest that is {state}"
            _table(f"Full copy by the backup API, {what}, medians of {rounds} rounds in turn", took)


def still_copies(rounds: int) -> None:
    """The copy inside SnapLive's window in turn with what else would copy the file."""
    for disk_format in ("qcow2", "raw"):
        took: dict[str, list[Took]] = {"ours": [], "rsync --sparse + sha256": [], "qemu-img convert + sha256": []}
        with bench_of(4, disk_format) as bench, bench.window():
            for _ in range(rounds):
                for name, work in zip(took, (bench.our_copy, bench.rsync, bench.qemu_img), strict=True):
                    took[name].append(measured(work))
        _table(f"SnapLive's copy, {disk_format}, {DATA_MIB} MiB of data on 4 GiB, medians of {rounds} rounds", took)


def limits(rounds: int) -> None:
    """What a copy cannot do without, each alone; ours beside it."""
    took: dict[str, list[Took]] = {"ours": [], "ssh": [], "write, fsync": [], "sha256": []}
    with bench_of(4) as bench, bench.window():
        works = (bench.our_copy, bench.ssh_alone, bench.write_alone, bench.hash_alone)
        for _ in range(rounds):
            for name, work in zip(took, works, strict=True):
                took[name].append(measured(work))
    _table(f"What bounds a copy of {DATA_MIB} MiB, each alone, medians of {rounds} rounds in turn", took)


def _table(title: str, took: dict[str, list[Took]]) -> None:
    print(f"\n{title}")
    print("| | s | MiB/s | ours is … times as fast | CPU s per GiB |")
    print("|---|---|---|---|---|")
    mine = statistics.median(one.wall_s for one in took["ours"])
    for name, ones in took.items():
        wall_s, cpu_s = (statistics.median(getattr(one, field) for one in ones) for field in ("wall_s", "cpu_s"))
        cpu = f"{cpu_s * 1024 / DATA_MIB:.2f}"
        print(f"| {name} | {wall_s:.2f} | {DATA_MIB / wall_s:.0f} | {wall_s / mine:.2f} | {cpu} |")


def increments(rounds: int, sizes_gib: tuple[int, ...]) -> None:
    """Increments on disks of several sizes, each with several amounts written in between: all pairs."""
    print(f"\nIncrement, {DATA_MIB} MiB of data, medians of {rounds} rounds in turn, seconds")
    print("| virtual size | written in between | ours, a whole disk | virtnbdbackup and virtnbdrestore | ratio |")
    print("|---|---|---|---|---|")
    for size_gib in sizes_gib:
        with bench_of(size_gib) as bench:
            ours_s, theirs_s = _of_ours(bench, rounds), _of_theirs(bench, rounds)
        for dirty_mib in DIRTY_MIB:
            mine, peer = ours_s[dirty_mib], theirs_s[dirty_mib]
            percent = f"{dirty_mib / size_gib / 10.24:.2g} %"
            print(f"| {size_gib} GiB | {dirty_mib} MiB, {percent} | {mine:.2f} | {peer:.2f} | {peer / mine:.1f} |")


def _of_ours(bench: Bench, rounds: int) -> dict[int, float]:
    parent, took = bench.ours(None), {}
    for dirty_mib in DIRTY_MIB:
        ones = []
        for _ in range(rounds):
            bench.dirty(dirty_mib)
            began = time.monotonic()
            parent = bench.ours(parent)
            ones.append(time.monotonic() - began)
        took[dirty_mib] = statistics.median(ones)
    return took


def _of_theirs(bench: Bench, rounds: int) -> dict[int, float]:
    took = {}
    for dirty_mib in DIRTY_MIB:
        bench.forget()
        bench.virtnbdbackup("full")
        ones = []
        for _ in range(rounds):
            bench.dirty(dirty_mib)
            ones.append(measured(lambda: bench.virtnbdbackup("inc")).wall_s)
        took[dirty_mib] = statistics.median(ones)
    return took


def main() -> int:
    """Run all of it and print the tables."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.images", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=["limits", "full", "still", "increments"], help="only this one of the four")
    options = parser.parse_args()
    if shutil.which("virtnbdbackup") is None:
        raise LabError("the peer is missing: apt-get install virtnbdbackup")
    parts: dict[str, Callable[[], None]] = {
        "limits": lambda: limits(options.rounds),
        "full": lambda: full_copies(options.rounds),
        "still": lambda: still_copies(options.rounds),
        "increments": lambda: increments(options.rounds, (1, 4, 16)),
    }
    for name, part in parts.items():
        if options.part in (None, name):
            part()
    return 0


if __name__ == "__main__":
    run(main)
