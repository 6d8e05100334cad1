"""What the benches of the permanent stage share: overnight copies, ours and stock rsnapshot, the check of both."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tasks.drivers import changed, restore_points, rsnapshot
from tasks.drivers.changed import Changed
from tasks.drivers.digest import sha256_file, write_listing
from tasks.drivers.permanent import PermanentPlace
from tasks.drivers.renewal import FULL_EVERY, Renewal
from tasks.drivers.rsnapshot import render_config, rsync_options
from tasks.drivers.store import Store, write_model
from tasks.model.manifest import NightManifest
from tasks.model.names import new_id
from tasks.model.outcome import Outcome
from tasks.model.retention import Retain, Rules
from tests.bench.gauges import timed
from tests.lab.process import LabError

KEPT = 3
DEADLINE_S = 3600
STOCK = Path("/etc/rsnapshot.conf")
RULES = Rules((Retain("daily", KEPT),), 1)


class Client:
    """A client below `folder`: its overnight copies, and its restore points in `place`."""

    def __init__(self, folder: Path, place: PermanentPlace, files: int, files_a_folder: int) -> None:
        self.folder, self.place, self.files, self.files_a_folder = folder, place, files, files_a_folder
        self.night, self.root = Store(folder).overnight(folder.name), place.path / folder.name
        self.number, self.random = 0, random.Random(folder.name)
        self.config, self.lock = folder / "ours.conf", folder / "ours.pid"
        self.night.parent.mkdir(parents=True)
        self.config.write_text(render_config(self.night, self.root, self.lock, RULES.retain, rsync_options()))

    def path(self, number: int) -> str:
        """Where a file of the client lies."""
        folder = number // self.files_a_folder
        return f"{folder // 100:03}/{folder % 100:02}/{number % self.files_a_folder:03}"

    def make_night(self) -> float:
        """One more night, of which 1 % is new; the seconds that finding the changes took."""
        self.number += 1
        new = self.folder / "new"
        if self.night.exists():
            subprocess.run(["cp", "--archive", "--link", self.night, new], check=True)
            for name in ("SHA256SUMS", "facts.json", "manifest.json"):
                (new / name).unlink()
            chosen = self.random.sample(range(self.files), self.files // 100)
        else:
            for folder in range(0, self.files, self.files_a_folder):
                (new / "data" / self.path(folder)).parent.mkdir(parents=True)
            chosen = list(range(self.files))
        for number in chosen:
            path = new / "data" / self.path(number)
            path.unlink(missing_ok=True)
            path.write_bytes(f"{self.number} {number}\n".encode() * (1 + number % 120))
        found = self._publish(new)
        subprocess.run(["sync", "--file-system", self.folder], check=True)
        return found

    def _publish(self, new: Path) -> float:
        ended = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=self.number)
        last = self.night / "SHA256SUMS"
        listed = write_listing(new / "data", new / "SHA256SUMS", self.night / "data", last)
        (new / "facts.json").write_text("{}")
        manifest = NightManifest(
            id=new_id(ended),
            client=self.folder.name,
            started=ended,
            ended=ended,
            outcome=Outcome.OK,
            paths=("/",),
            excluded=(),
            files=listed.files,
            size_bytes=listed.size_bytes,
            listing_sha256=sha256_file(new / "SHA256SUMS"),
            facts_sha256=sha256_file(new / "facts.json"),
        )
        write_model(new / "manifest.json", manifest)
        seconds = 0.0
        if self.night.exists():
            since = new_id(ended - timedelta(days=1))

            def find() -> None:
                found = changed.find(new / "data", listed)
                changed.write(self.folder / "changed", Changed(since, manifest.id, found or frozenset()))

            seconds = timed(find)
            shutil.rmtree(self.night)
        new.rename(self.night)
        return seconds

    def sync(self, *, renew: bool = True, before: int = 0) -> None:
        """Sync, flush and stamp by the drivers; `before` is how many renewals there were since all was compared."""
        found = changed.read(self.folder / "changed") if renew else None
        counted = self.folder / "counted"
        counted.write_text(f"{before}\n")
        renewal = Renewal(found, rsync_options(), self.folder / "list", counted) if found else None
        self.lock.unlink(missing_ok=True)
        rsnapshot.sync(self.place, self.config, self.night, self.root, DEADLINE_S, renewal)
        if renewal is not None and int(counted.read_text()) != (before + 1) % FULL_EVERY:
            raise LabError("it was no renewal")

    def rotate(self) -> None:
        """As the drivers do; what is given up is due at once."""
        restore_points.rotate(self.place, self.root, RULES, 0)


def stock_config(config: Path, root: Path, clients: Sequence[Client]) -> None:
    """Write the package's own configuration, with another root and retention, and the clients as its backup points."""
    changed_rows = ("snapshot_root\t", "retain\t", "backup\t", "lockfile\t", "logfile\t")
    kept = [line for line in STOCK.read_text().splitlines() if not line.startswith(changed_rows)]
    rows = [
        ("snapshot_root", f"{root}/"),
        ("retain", "daily", str(KEPT)),
        ("lockfile", str(config.with_suffix(".pid"))),
        *(("backup", f"{client.night}/", f"{client.folder.name}/") for client in clients),
    ]
    config.write_text("\n".join([*kept, *("\t".join(row) for row in rows)]) + "\n")


def in_stock(root: Path, client: Client) -> Path:
    """The client's newest point there: rsync --relative keeps the whole path."""
    return root / "daily.0" / client.folder.name / str(client.night).lstrip("/")


def require_same(night: Path, point: Path) -> None:
    """LabError unless rsync finds the files of a night in a point."""
    argv = ["rsync", "--dry-run", "--itemize-changes", "-aHAXS", "--delete", f"{night}/data", f"{point}/"]
    if left := subprocess.run(argv, check=True, capture_output=True, text=True).stdout:
        raise LabError(f"{point} is not the night: {left[:200]}")
