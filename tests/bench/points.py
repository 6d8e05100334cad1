"""`make bench`: what restore points take beside the tree that they are of, as du(1) says, and with --guest as VDO says.

The tree is a copy of a real one (--tree). Each night 1 % of its bytes are in files, chosen by chance, that are written
anew, every block of them. Beside it lies one large file, a twentieth of all, of which 1 % of the blocks change each
night, as of a database or a mailbox: hard links keep it whole every time. Points are made by rsnapshot and GBS's own
rotation, as stage 2 makes them; the nights' dates are a day apart, nobody waits.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from tasks.drivers.digest import write_listing
from tasks.drivers.permanent import MARKER, PermanentPlace
from tasks.model.retention import Retain, Rules
from tests.bench import run
from tests.lab.progress import phase, say
from tests.unit.points_site import STORE_ID, Site

TREE = Path("/usr/lib/python3")
NIGHTS, POLICY_NIGHTS = 20, 120
AIM = 2.5
BLOCK = 4096
LARGE = "large"
BY_POLICY = Rules((Retain("daily", 14), Retain("weekly", 4), Retain("monthly", 3)), 2)
"""The default policy."""


class Nights:
    """The nights of one client below `folder`, restore points in `far`."""

    def __init__(self, folder: Path, far: Path, tree: Path, rules: Rules, *, large: bool) -> None:
        (far / "store").mkdir(parents=True)
        (far / "store" / MARKER).write_text(STORE_ID)
        self.site = Site(folder, rules, PermanentPlace(far / "store", STORE_ID, "local"))
        self.data = self.site.source / "data"
        self.chance = random.Random(1)
        self.data.mkdir(parents=True)
        subprocess.run(["cp", "-a", "--reflink=never", f"{tree}/.", str(self.data)], check=True)
        found = [path for path in self.data.rglob("*") if path.is_file() and not path.is_symlink()]
        self.files = sorted(path.relative_to(self.data) for path in found)
        self.size_bytes = sum(path.stat().st_size for path in found)
        self.large_blocks = self.size_bytes // 19 // BLOCK if large else 0
        if large:
            self._make_large()

    def _make_large(self) -> None:
        """What is in the tree itself, so that it compresses as that does."""
        left = self.large_blocks * BLOCK
        with (self.data / LARGE).open("wb") as out:
            for name in self.chance.sample(self.files, len(self.files)):
                left -= out.write((self.data / name).read_bytes()[:left])

    def keep(self, number: int) -> None:
        """A night's copy becomes a restore point."""
        if number:
            self._change(number)
        write_listing(self.data, self.site.source / "SHA256SUMS", None, None)
        (self.site.source / "facts.json").write_text("{}")
        self.site.publish(number)
        self.site.sync()
        self.site.rotate()

    def _change(self, number: int) -> None:
        left = self.size_bytes // 100
        for name in self.chance.sample(self.files, len(self.files)):
            path = self.data / name
            content = path.read_bytes()
            if left <= 0:
                break
            left -= len(content)
            # No block is what any was, and all compress as they did.
            self._replace(path, bytes([number % 256]) + content[:-1] if content else b"")
        if self.large_blocks:
            path = self.data / LARGE
            blocks = bytearray(path.read_bytes())
            for block in self.chance.sample(range(self.large_blocks), max(1, self.large_blocks // 100)):
                blocks[block * BLOCK : (block + 1) * BLOCK] = self.chance.randbytes(BLOCK)
            self._replace(path, bytes(blocks))

    @staticmethod
    def _replace(path: Path, content: bytes) -> None:
        new = path.with_name(f".{path.name}.new")
        new.write_bytes(content)
        shutil.copystat(path, new)
        os.utime(new)
        new.rename(path)


def du(folder: Path) -> int:
    """The bytes that it takes."""
    return int(subprocess.check_output(["du", "-s", "-x", "-B1", str(folder)], text=True).split()[0])


def vdo_blocks(folder: Path) -> int | None:
    """The blocks of data that the VDO volume holds which a folder lies on; None when it lies on none."""
    if shutil.which("vdostats") is None or not os.path.ismount(folder):
        return None
    subprocess.run(["sync", "-f", str(folder)], check=True)
    found = re.search(r"data blocks used +: (\d+)", subprocess.check_output(["vdostats", "-v"], text=True))
    return int(found[1]) if found else None


def measured(far: Path, tree: Path, nights: int, rules: Rules, *, large: bool) -> str:
    """A row of the table: so many nights, what their points take."""
    place = Path(tempfile.mkdtemp(dir=far, prefix="points-"))
    before = vdo_blocks(far)
    try:
        with tempfile.TemporaryDirectory(prefix="nights-") as near:
            client = Nights(Path(near), place, tree, rules, large=large)
            alone = du(client.data)
            client.keep(0)
            first = vdo_blocks(far)
            for number in range(1, nights):
                client.keep(number)
                say(f"night {number + 1} of {nights}: {du(client.site.root) / alone:.2f} times the tree")
            points, took = len(client.site.days()), du(client.site.root)
            after = vdo_blocks(far)
    finally:
        shutil.rmtree(place)
        if before is not None:
            subprocess.run(["fstrim", str(far)], check=True)
    row = f"| {nights} nights, {points} points{', with a large file' if large else ''} | {alone / (1 << 20):.0f} MiB"
    row += f" | {took / (1 << 20):.0f} MiB | **{took / alone:.2f}** |"
    if before is not None and first is not None and after is not None:
        mib = BLOCK / (1 << 20)
        row += f" {(first - before) * mib:.0f} MiB | {(after - before) * mib:.0f} MiB"
        row += f" | **{(after - before) * BLOCK / alone:.2f}** |"
    return row


def in_guest(tree: Path, nights: int) -> int:
    """The same on VDO, in a guest of its own (tests/lab/vdo_guest.py)."""
    from tests.lab import vdo_guest

    make = ["store", "create", "--vdo", vdo_guest.DISK, "--run"]
    create = ["python3", "-c", "from flows.cli.main import main; main()", *make]
    bench = ["python3", "-m", "tests.bench.points", "--in", "/srv/gbs", "--tree", str(tree), "--nights", str(nights)]
    with vdo_guest.run(f"({shlex.join(create)} && {shlex.join(bench)}) >answer/output 2>&1", deadline_s=7200) as answer:
        print((answer / "output").read_text(errors="replace"))
    return 0


def main() -> int:
    """Run all of it and print the table."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.points", description=__doc__)
    parser.add_argument("--tree", type=Path, default=TREE, help="what the client has")
    parser.add_argument("--nights", type=int, default=NIGHTS)
    parser.add_argument("--policy-nights", type=int, default=0, help="so many by the default policy, too")
    parser.add_argument("--in", dest="far", type=Path, help="where the points lie")
    parser.add_argument("--guest", action="store_true", help="on VDO, in a guest")
    options = parser.parse_args()
    if options.guest:
        return in_guest(options.tree, options.nights)
    far = options.far or Path(tempfile.gettempdir())
    every = Rules((Retain("daily", options.nights),), 2)
    runs = [(options.nights, every, False), (options.nights, every, True)]
    if options.policy_nights:
        runs += [(options.policy_nights, BY_POLICY, False), (options.policy_nights, BY_POLICY, True)]
    rows = []
    for nights, rules, large in runs:
        with phase(f"{nights} nights{', a large file' if large else ''}"):
            rows.append(measured(far, options.tree, nights, rules, large=large))
    print(f"\n{options.tree}, 1 % changed a night; aim: at most {AIM} times the tree")
    on_vdo = vdo_blocks(far) is not None
    head = ["", "the tree (du)", "its points (du)", "times"]
    head += ["one point on VDO", "all points on VDO", "times"] if on_vdo else []
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    run(main)
