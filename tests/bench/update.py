"""`make bench`: an image brought up to a night, beside libguestfs' appliance and a bare rsync of the same trees.

"Ours" is the update as a recovery makes it, from the overlay to the flushed end; "ours, whole" is that and what makes
of it disks that stand alone: one copy (or reflink), `qemu-img check`, a sha256. Proofs of the image and of the night
come before, and are not part of either. The peers run in the same appliance, on an overlay of their own, against an
rsync daemon on this machine: with nothing changed, launch, mount and `rsync --dry-run` with our options; with so many
MB changed, launch, mount and libguestfs' own rsync_in, which knows neither links nor ACLs nor xattrs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import guestfs

from tasks.drivers import appliance, qemu_img, whole_disk
from tasks.drivers.appliance import DiskFile
from tasks.drivers.digest import record
from tasks.drivers.host_shell import LocalShell
from tasks.model.image_update import MountedBy
from tasks.model.window import Layer
from tests.bench import run
from tests.bench.files import in_turn, table
from tests.bench.gauges import timed
from tests.lab.process import LabError
from tests.lab.progress import phase

DEADLINE_S = 3600
SMALL_FILES = 20_000
DRY_RUN = "rsync -aHAXS --numeric-ids --delete --dry-run rsync://169.254.2.2:{port}/data/ /sysroot/"
_CONFIG = "[data]\npath = {tree}\nuid = 0\ngid = 0\nread only = yes\nuse chroot = no\n"


class Bench:
    """An image with a tree in it, and that tree as a night."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.night, self.base = folder / "night", DiskFile(folder / "vda.raw", "raw")
        self.overlay = DiskFile(folder / "vda.overlay", "qcow2")
        self.mounts: list[MountedBy] = []

    def make(self, files: int, changed_mib: int) -> None:
        """A tree of small files and `changed_mib` in large ones, and an image that holds it."""
        for number in range(files):
            path = self.night / f"small/{number // 500}/{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(4096))
        self.change(changed_mib)
        size_mib = 512 + files * 8 // 1024 + 3 * changed_mib
        subprocess.run(["qemu-img", "create", "-q", "-f", "raw", str(self.base.path), f"{size_mib}M"], check=True)
        with self.appliance(self.base) as handle:
            handle.part_disk("/dev/sda", "gpt")
            handle.mkfs("ext4", "/dev/sda1")
            self.mounts = [MountedBy("/", handle.vfs_uuid("/dev/sda1"), "ext4")]
        self.lay_over()
        self.ours()
        base = Layer(path=str(self.base.path), format=self.base.format)
        qemu_img.commit(LocalShell(), str(self.overlay.path), [base], deadline_s=DEADLINE_S)

    def change(self, size_mib: int) -> None:
        """Write the large files of the night anew."""
        (self.night / "large").mkdir(parents=True, exist_ok=True)
        for number in range(10):
            (self.night / f"large/{number}").write_bytes(os.urandom((size_mib << 20) // 10))

    def lay_over(self) -> None:
        """A new overlay on the image."""
        self.overlay.path.unlink(missing_ok=True)
        qemu_img.create_overlay(LocalShell(), str(self.overlay.path), str(self.base.path), self.base.format)

    @contextlib.contextmanager
    def appliance(self, disk: DiskFile) -> Iterator[Any]:
        """libguestfs' appliance as a careful person starts it, with its network for rsync_in."""
        os.environ.update(appliance.appliance_environment(os.environ))
        handle = guestfs.GuestFS(python_return_dict=True)
        with contextlib.closing(handle):
            handle.add_drive_opts(str(disk.path), format=disk.format, cachemode="unsafe")
            handle.set_network(True)
            handle.launch()
            yield handle
            handle.umount_all()
            handle.shutdown()

    def ours(self) -> float:
        """Seconds of our update."""

        def update() -> None:
            appliance.update_files(
                [self.overlay], self.mounts, self.night, keep=(), deadline_s=DEADLINE_S, on_progress=lambda *_: None
            )

        self.lay_over()
        return timed(update)

    def ours_whole(self, *, changed: bool) -> float:
        """Seconds of our update and of a disk that stands alone, in the format of most VMs."""
        whole = DiskFile(self.folder / "vda.qcow2", "qcow2")
        whole.path.unlink(missing_ok=True)
        took = self.ours()

        def finish() -> None:
            above = self.overlay.path if changed else None
            whole_disk.make(self.base, above, whole, (), deadline_s=DEADLINE_S)
            qemu_img.check(LocalShell(), str(whole.path), whole.format, deadline_s=DEADLINE_S)
            record(whole.path, self.folder)

        return took + timed(finish)

    def dry_run(self) -> float:
        """Seconds of launch, mount, a bare rsync that only compares, and the end."""

        def compare() -> None:
            with self.appliance(self.overlay) as handle:
                handle.mount("/dev/sda1", "/")
                handle.debug("sh", [DRY_RUN.format(port=self.port)])

        self.lay_over()
        return timed(compare)

    def rsync_in(self) -> float:
        """Seconds of launch, mount, rsync_in and the end."""

        def copy() -> None:
            with self.appliance(self.overlay) as handle:
                handle.mount("/dev/sda1", "/")
                handle.rsync_in(f"rsync://169.254.2.2:{self.port}/data/", "/", archive=True, deletedest=True)

        self.lay_over()
        return timed(copy)


@contextlib.contextmanager
def _daemon(folder: Path, tree: Path) -> Iterator[int]:
    """An rsync daemon on loopback that shows the tree; its port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    config = folder / "rsyncd.conf"
    config.write_text(_CONFIG.format(tree=tree))
    argv = ["rsync", "--daemon", "--no-detach", "--address=127.0.0.1", f"--port={port}", f"--config={config}"]
    process = subprocess.Popen(argv)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        else:
            raise LabError("the rsync daemon does not answer")
        yield port
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    """Run both and print the tables."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.update", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=SMALL_FILES, help="so many of 4 KiB")
    parser.add_argument("--changed-mib", type=int, default=500)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gbs-bench-update-", dir="/var/tmp"))
    try:
        with _daemon(folder, folder / "night") as port:
            bench = Bench(folder, port)
            with phase("an image with the night in it"):
                bench.make(options.files, options.changed_mib)
            works = {
                "appliance launch and a bare rsync dry run": bench.dry_run,
                "ours": bench.ours,
                "ours, whole": lambda: bench.ours_whole(changed=False),
            }
            took = in_turn(works, options.rounds, lambda: None)
            table(f"Update with nothing changed, {options.files:,} files", took, options.rounds)
            bench.change(options.changed_mib)
            works = {
                "appliance launch and rsync_in": bench.rsync_in,
                "ours": bench.ours,
                "ours, whole": lambda: bench.ours_whole(changed=True),
            }
            took = in_turn(works, options.rounds, lambda: None)
            table(f"Update with {options.changed_mib} MiB changed", took, options.rounds)
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    run(main)
