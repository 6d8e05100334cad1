"""`make bench`: the permanent stage of 20 clients beside stock rsnapshot, with a store that is 10 ms away by NFSv4.2.

The guest of tests/lab/nfs_guest.py has NFS, and netem: each end of the cable between its two sites delays what it sends
by 5 ms. It has one processor. Stock is one `rsnapshot daily` with the defaults of its package (no link_dest, no lazy
deletes, no sync_first) and the 20 clients' overnight copies as its backup points, and a syncfs after it. Ours is what
stage 2 does to a client: proofs, sync, flush, stamp, brake, rotation, 8 clients side by side; by the drivers, as
importing Prefect takes 10 s there. Both keep so many daily points, and each night gives one up. Nobody waits for the
removal of what ours gave up: it is measured apart. Every point is compared with its overnight copy by rsync --dry-run
on the server's own disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import socket
import statistics
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tasks.drivers import held_nights, restore_points
from tasks.drivers.engines import Ground
from tasks.drivers.engines.rsnapshot import RsnapshotEngine
from tasks.drivers.permanent import MARKER, PermanentPlace, at, prove
from tasks.drivers.renewal import FULL_EVERY
from tasks.drivers.store import Store, keeps_nanoseconds, read_model, verify_night
from tasks.errors import IntegrityError
from tasks.model.inventory import Policy
from tasks.model.manifest import MANIFEST, NightManifest
from tests.bench import run
from tests.bench.gauges import timed
from tests.bench.nights import KEPT, Client, in_stock, require_same, stock_config
from tests.lab.leftovers import LABS
from tests.lab.nfs_guest import guest_folder, run_near
from tests.lab.nfs_sites import EXPORT, FAR, server
from tests.lab.progress import phase, say

CLIENTS, FILES, FILES_A_FOLDER = 20, 100, 10
AT_ONCE = 8
"""As flows.side_by_side has it."""
DELAY, NFS_PORT = "5ms", 2049
STORE = Path("/mnt/far")


class Bench:
    """The clients, the store, and what both have there."""

    def __init__(self, folder: Path) -> None:
        self.place = PermanentPlace(STORE, "bench", "nfs4", EXPORT, "vers=4.2")
        self.stock_root, self.stock_config = STORE / "stock", folder / "stock.conf"
        self.folder, self.policy = folder, Policy()
        STORE.mkdir()
        (FAR / MARKER).write_text("bench")
        prove(self.place)
        self.stock_root.mkdir()
        folder.mkdir()
        names = [f"client{number:02}" for number in range(1, CLIENTS + 1)]
        self.clients = [Client(folder / name, self.place, FILES, FILES_A_FOLDER) for name in names]
        stock_config(self.stock_config, self.stock_root, self.clients)

    def make_night(self) -> None:
        for client in self.clients:
            client.make_night()

    def keep(self, client: Client, renew: bool, before: int) -> None:
        """One client, as tasks/points.py does; its locks and its log are on this server."""
        prove(self.place)
        night = read_model(client.night / MANIFEST, NightManifest)
        if night is None:
            raise IntegrityError(str(client.night), "a night with a manifest", "none")
        verify_night(client.night, night)
        at(self.place, keeps_nanoseconds, STORE)
        client.sync(renew=renew, before=before)
        prove(self.place)
        held_nights.brake(RsnapshotEngine(Ground(client.root.name, self.policy, Store(client.folder), self.place)))
        prove(self.place)
        client.rotate()

    def ours(self, *, renew: bool = True, before: int = 0) -> float:
        """Seconds of all clients, so many side by side; `before` is as in `Client.sync`."""

        def work() -> None:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda client: self.keep(client, renew, before), self.clients))

        seconds = timed(work)
        self._require_same(lambda client: FAR / client.root.name / "daily.0")
        return seconds

    def tidied(self) -> float:
        """Seconds of removing all but one of what each client gave up; one is used again."""
        for client in self.clients:  # out of the way, as if it were not due yet
            trash = sorted((FAR / client.root.name).glob(".trash-*"))
            for path in trash[-1:]:
                path.rename(path.with_name(path.name.replace(".trash-2", ".trash-9")))

        def work() -> None:
            for client in self.clients:
                prove(self.place)
                restore_points.tidy(self.place, client.root)

        seconds = timed(work)
        for client in self.clients:
            for path in (FAR / client.root.name).glob(".trash-9*"):
                path.rename(path.with_name(path.name.replace(".trash-9", ".trash-2")))
        return seconds

    def stock(self) -> float:
        """Seconds of rsnapshot as it comes, and a flush."""
        argv = f"rsnapshot -c {self.stock_config} daily && sync -f {self.stock_root}"
        seconds = timed(lambda: subprocess.run(["sh", "-c", argv], check=True))
        self._require_same(lambda client: in_stock(FAR / "stock", client))
        return seconds

    def _require_same(self, point: Callable[[Client], Path]) -> None:
        for client in self.clients:
            require_same(client.night, point(client))


def _delay() -> float:
    """Delay what goes through the cable, both ways; the milliseconds of a round trip then, as TCP's handshake shows."""
    netem = f"tc qdisc add dev cable root netem delay {DELAY}"
    subprocess.run(["sh", "-c", netem], check=True)
    server(netem)

    def connect() -> None:
        socket.create_connection((EXPORT.partition(":")[0], NFS_PORT)).close()

    return statistics.median(timed(connect) for _ in range(10)) * 1000


def _requests() -> dict[str, int]:
    """How often each operation was asked of the store's server, as the kernel counts (nfsstat(8), mountstats)."""
    mount = Path("/proc/self/mountstats").read_text().partition(f"mounted on {STORE} ")[2].partition("\ndevice ")[0]
    rows = [line.split() for line in mount.partition("per-op statistics\n")[2].splitlines()]
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1}


@dataclasses.dataclass
class Row:
    """What one kind of work took, each time."""

    name: str
    seconds: list[float] = dataclasses.field(default_factory=list)
    requests: list[int] = dataclasses.field(default_factory=list)

    def measure(self, seconds: Callable[[], float]) -> None:
        """Do the work once more; `seconds` returns how many it took."""
        before = _requests()
        self.seconds.append(seconds())
        asked = {operation: count - before.get(operation, 0) for operation, count in _requests().items()}
        self.requests.append(sum(asked.values()))
        most = sorted(((count, operation) for operation, count in asked.items() if count), reverse=True)[:12]
        said = ", ".join(f"{count} {operation}" for count, operation in most)
        say(f"{self.name}: {self.seconds[-1]:.1f} s, {self.requests[-1]} requests: {said}")


def measure(rounds: int) -> int:
    """In the guest: make the points, put the store away, measure all in turn, print the table."""
    bench = Bench(LABS / "bench")
    for number in range(KEPT + 1):
        bench.make_night()
        ours, stock = bench.ours(), bench.stock()
        say(f"point {number + 1} of {KEPT + 1}, without delay: ours {ours:.1f} s, stock {stock:.1f} s")
    round_trip_ms = _delay()
    say(f"a round trip takes {round_trip_ms:.1f} ms")
    stock_row, ours_row, removed = Row("stock rsnapshot"), Row("ours"), Row("removing, after ours")
    works = [(ours_row, bench.ours), (stock_row, bench.stock)]
    for number in range(rounds):
        bench.make_night()
        for row, work in works if number % 2 == 0 else reversed(works):
            row.measure(work)
        removed.measure(bench.tidied)
    rows = [stock_row, ours_row, removed]
    for name, how in (
        ("ours, each 7th night", partial(bench.ours, before=FULL_EVERY - 1)),
        ("ours, by rsnapshot", partial(bench.ours, renew=False)),
    ):
        bench.make_night()
        for row, work in ((Row(name), how), (Row(f"removing, after {name}"), bench.tidied)):
            row.measure(work)
            rows.append(row)
    print(f"\n{CLIENTS} clients of {FILES} files, 1 % new each night, {KEPT} points kept, one processor; a round trip")
    print(f"to the store takes {round_trip_ms:.1f} ms; medians of {rounds} rounds in turn")
    _print_table(rows, statistics.median(stock_row.seconds))
    return 0


def _print_table(rows: list[Row], stock_s: float) -> None:
    print("| | s | stock takes … times as long | each round | requests to the server |")
    print("|---|---|---|---|---|")
    for row in rows:
        median, each = statistics.median(row.seconds), ", ".join(f"{value:.1f}" for value in row.seconds)
        asked = statistics.median(row.requests)
        print(f"| {row.name} | {median:.1f} | {stock_s / median:.2f} | {each} | {asked:.0f} |")


def main() -> int:
    """Boot the guest and run all of it there."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.latency", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--here", action="store_true", help="in the guest: measure")
    options = parser.parse_args()
    if options.here:
        return measure(options.rounds)
    arguments = ["-m", "tests.bench.latency", "--here", f"--rounds={options.rounds}"]
    with guest_folder("latency") as folder, phase(f"{CLIENTS} clients, and a store by NFS"):
        return run_near(folder, arguments, ["sch_netem"])


if __name__ == "__main__":
    run(main)
