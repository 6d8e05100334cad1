"""`make bench`: the permanent stage of one large client beside stock rsnapshot, in turn, in one run.

The client's overnight copy has 500,000 files, of which 1 % is new each night. Stock is `rsnapshot daily` with the
defaults of its package (no link_dest, no lazy deletes, no sync_first) from the same overnight copy, and a syncfs after
it; ours is sync, flush, stamp and rotation by the drivers, with the renewal from what stage 1 found. Both keep so many
daily points, and each night gives one up. Stage 1 itself is not measured here, but what finding the changes costs it.
Every point is compared with the overnight copy by rsync --dry-run.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tasks.drivers import changed, restore_points, rsnapshot
from tasks.drivers.changed import Changed
from tasks.drivers.digest import sha256_file, write_listing
from tasks.drivers.permanent import MARKER, PermanentPlace
from tasks.drivers.renewal import FULL_EVERY, Renewal
from tasks.drivers.rsnapshot import render_config, rsync_options
from tasks.drivers.store import write_model
from tasks.model.manifest import NightManifest
from tasks.model.names import new_id
from tasks.model.outcome import Outcome
from tasks.model.retention import Retain, Rules
from tests.bench import run
from tests.bench.gauges import timed
from tests.lab.leftovers import LABS
from tests.lab.process import LabError
from tests.lab.progress import phase, say

FILES_A_FOLDER = 100
KEPT = 3
DEADLINE_S = 3600
STOCK = "/etc/rsnapshot.conf"


class Bench:
    """A client's overnight copy, and the restore points of both."""

    def __init__(self, folder: Path, files: int) -> None:
        self.folder, self.files, self.number = folder, files, 0
        self.night, self.random = folder / "overnight", random.Random(1)
        self.place = PermanentPlace(folder / "far", "bench", "local")
        self.root, self.stock_root = self.place.path / "client", folder / "stock"
        self.rules = Rules((Retain("daily", KEPT),), 1)
        self.config, self.stock_config = folder / "ours.conf", folder / "stock.conf"
        for path in (self.place.path, self.stock_root):
            path.mkdir()
        (self.place.path / MARKER).write_text("bench")
        lock = folder / "ours.pid"
        self.config.write_text(render_config(self.night, self.root, lock, self.rules.retain, rsync_options()))
        self.stock_config.write_text(self._stock())

    def _stock(self) -> str:
        """The package's own configuration, with another root, retention and source."""
        changed_rows = ("snapshot_root\t", "retain\t", "backup\t", "lockfile\t", "logfile\t")
        kept = [line for line in Path(STOCK).read_text().splitlines() if not line.startswith(changed_rows)]
        rows = [
            ("snapshot_root", f"{self.stock_root}/"),
            ("retain", "daily", str(KEPT)),
            ("lockfile", f"{self.folder}/stock.pid"),
            ("backup", f"{self.night}/", "./"),
        ]
        return "\n".join([*kept, *("\t".join(row) for row in rows)]) + "\n"

    def path(self, number: int) -> str:
        """Where a file of the client lies."""
        folder = number // FILES_A_FOLDER
        return f"{folder // 100:03}/{folder % 100:02}/{number % FILES_A_FOLDER:03}"

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
            for folder in range(0, self.files, FILES_A_FOLDER):
                (new / "data" / self.path(folder)).parent.mkdir(parents=True)
            chosen = list(range(self.files))
        for number in chosen:
            path = new / "data" / self.path(number)
            path.unlink(missing_ok=True)
            path.write_bytes(f"{self.number} {number}\n".encode() * (1 + number % 120))
        found = self._publish(new)
        subprocess.run(["sync"], check=True)
        return found

    def _publish(self, new: Path) -> float:
        ended = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=self.number)
        last = self.night / "SHA256SUMS"
        listed = write_listing(new / "data", new / "SHA256SUMS", self.night / "data", last)
        (new / "facts.json").write_text("{}")
        manifest = NightManifest(
            id=new_id(ended),
            client="client",
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
                found = changed.find(new / "data", self.night / "data", listed.files // changed.ONE_IN)
                changed.write(self.folder / "changed", Changed(since, manifest.id, found or frozenset()))

            seconds = timed(find)
            shutil.rmtree(self.night)
        new.rename(self.night)
        return seconds

    def ours(self, *, renew: bool = True, before: int = 0) -> float:
        """Seconds of our permanent stage; `before` is how many there were since all was compared."""
        found = changed.read(self.folder / "changed") if renew else None
        counted = self.folder / "counted"
        counted.write_text(f"{before}\n")
        renewal = Renewal(found, rsync_options(), self.folder / "list", counted) if found else None
        (self.folder / "ours.pid").unlink(missing_ok=True)

        def work() -> None:
            rsnapshot.sync(self.place, self.config, self.night, self.root, DEADLINE_S, renewal)
            restore_points.rotate(self.place, self.root, self.rules, 0)

        seconds = timed(work)
        if renewal is not None and int(counted.read_text()) != (before + 1) % FULL_EVERY:
            raise LabError("it was no renewal")
        self._require_same(self.root / "daily.0")
        return seconds

    def tidied(self) -> float:
        """Seconds of removing all but one of what was given up, which no client waits for; one is used again."""

        def work() -> None:
            for path in sorted(self.root.glob(".trash-*"))[1:]:
                shutil.rmtree(path)

        return timed(work)

    def stock(self) -> float:
        """Seconds of rsnapshot as it comes, and a flush."""
        argv = f"rsnapshot -c {self.stock_config} daily && sync -f {self.stock_root}"
        seconds = timed(lambda: subprocess.run(["sh", "-c", argv], check=True))
        self._require_same(self.stock_root / "daily.0" / str(self.night).lstrip("/"))  # its --relative
        return seconds

    def _require_same(self, point: Path) -> None:
        argv = ["rsync", "--dry-run", "--itemize-changes", "-aHAXS", "--delete", f"{self.night}/data", f"{point}/"]
        if left := subprocess.run(argv, check=True, capture_output=True, text=True).stdout:
            raise LabError(f"{point} is not the night: {left[:200]}")


def main() -> int:
    """Run all of it and print the table."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.rotation", description=__doc__)
    parser.add_argument("--files", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = LABS / f"test-bench-rotation-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        bench, took = Bench(folder, options.files), dict[str, list[float]]()
        for number in range(KEPT + 1):
            with phase(f"point {number + 1} of {KEPT + 1}, {options.files} files"):
                bench.make_night()
                bench.ours(renew=False)
                bench.stock()
        for number in range(options.rounds):
            with phase(f"round {number + 1} of {options.rounds}"):
                seconds = {"finding the changes (stage 1)": bench.make_night()}
                works = [("ours", bench.ours), ("stock rsnapshot", bench.stock)]
                for name, work in works if number % 2 == 0 else reversed(works):
                    seconds[name] = work()
                seconds["removing what was given up, afterwards"] = bench.tidied()
            for name, value in seconds.items():
                took.setdefault(name, []).append(value)
            say(", ".join(f"{name}: {value:.1f} s" for name, value in seconds.items()))
        for name, how in (
            ("ours, each 7th night", {"before": FULL_EVERY - 1}),
            ("ours, by rsnapshot", {"renew": False}),
        ):
            with phase(name):
                bench.make_night()
                took[name] = [bench.ours(**how)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    stock = statistics.median(took["stock rsnapshot"])
    print(
        f"\n{options.files} files, 1 % new each night, {KEPT} points kept; medians of {options.rounds} rounds in turn"
    )
    print("| | s | stock takes … times as long | each round |")
    print("|---|---|---|---|")
    for name, values in took.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.1f} | {stock / median:.2f} | {', '.join(f'{value:.1f}' for value in values)} |")
    return 0


if __name__ == "__main__":
    run(main)
