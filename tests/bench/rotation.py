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
import shutil
import statistics
import subprocess
from pathlib import Path

from tasks.drivers.permanent import MARKER, PermanentPlace
from tasks.drivers.renewal import FULL_EVERY
from tests.bench import run
from tests.bench.gauges import timed
from tests.bench.nights import KEPT, Client, in_stock, require_same, stock_config
from tests.lab.leftovers import LABS
from tests.lab.progress import phase, say

FILES_A_FOLDER = 100


class Bench:
    """A client's overnight copy, and the restore points of both."""

    def __init__(self, folder: Path, files: int) -> None:
        place = PermanentPlace(folder / "far", "bench", "local")
        self.stock_root, self.stock_config = folder / "stock", folder / "stock.conf"
        for path in (place.path, self.stock_root):
            path.mkdir()
        (place.path / MARKER).write_text("bench")
        self.client = Client(folder / "client", place, files, FILES_A_FOLDER)
        stock_config(self.stock_config, self.stock_root, [self.client])

    def ours(self, *, renew: bool = True, before: int = 0) -> float:
        """Seconds of our permanent stage; `before` is how many there were since all was compared."""

        def work() -> None:
            self.client.sync(renew=renew, before=before)
            self.client.rotate()

        seconds = timed(work)
        require_same(self.client.night, self.client.root / "daily.0")
        return seconds

    def tidied(self) -> float:
        """Seconds of removing all but one of what was given up, which no client waits for; one is used again."""

        def work() -> None:
            for path in sorted(self.client.root.glob(".trash-*"))[1:]:
                shutil.rmtree(path)

        return timed(work)

    def stock(self) -> float:
        """Seconds of rsnapshot as it comes, and a flush."""
        argv = f"rsnapshot -c {self.stock_config} daily && sync -f {self.stock_root}"
        seconds = timed(lambda: subprocess.run(["sh", "-c", argv], check=True))
        require_same(self.client.night, in_stock(self.stock_root, self.client))
        return seconds


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
                bench.client.make_night()
                bench.ours(renew=False)
                bench.stock()
        for number in range(options.rounds):
            with phase(f"round {number + 1} of {options.rounds}"):
                seconds = {"finding the changes (stage 1)": bench.client.make_night()}
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
                bench.client.make_night()
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
