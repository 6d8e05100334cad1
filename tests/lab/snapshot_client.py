"""A client of the lab with a real btrfs file system: two subvolumes, at /srv and at /srv/log."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab.namespaced import Namespaced
from tests.lab.process import ProcessRecord

_INIT = Path(__file__).parent / "host" / "snapshot-init.sh"
DISK_BYTES = 256 << 20


@dataclasses.dataclass
class SnapshotClient(Namespaced):
    """The machine's programs and files, but a /srv and a /run of its own; its root file system is not btrfs."""

    @property
    def init(self) -> Sequence[str]:
        """Process 1."""
        return [str(_INIT), self.name, str(self.directory)]

    def prepare(self) -> None:
        """Make the disk anew."""
        disk = self.directory / "disk"
        disk.unlink(missing_ok=True)
        with disk.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.btrfs", "--quiet", str(disk)], check=True, stdout=subprocess.DEVNULL)

    def outside(self, path: str) -> Path:
        """Where the machine sees a path of the client."""
        record = ProcessRecord.load(self._record)
        assert record is not None
        return Path(f"/proc/{record.pid}/root{path}")

    def mounts(self) -> list[str]:
        """What is mounted, what of, how it looks to others, a line each."""
        return self.run(["findmnt", "-n", "-r", "-o", "TARGET,SOURCE,FSTYPE,PROPAGATION"]).stdout.splitlines()

    def subvolumes(self) -> set[str]:
        """The paths of all subvolumes, from the top of the file system."""
        listed = self.run(["btrfs", "subvolume", "list", "-a", "/srv"]).stdout
        return {line.rpartition(" path ")[2].removeprefix("<FS_TREE>/") for line in listed.splitlines()}

    def in_top(self, script: str) -> None:
        """Run a shell script in the top of the file system, mounted for it alone."""
        device = self.run(["findmnt", "-n", "-o", "SOURCE", "/srv"]).stdout.partition("[")[0]
        mounting = 'mkdir -p /run/top; mount -o subvolid=5 "$1" /run/top; cd /run/top; set +e; (eval "$2"); s=$?'
        self.run(["sh", "-euc", f"{mounting}; cd /; umount /run/top; rmdir /run/top; exit $s", "sh", device, script])
