"""The demo: a real VM backed up through all stages, lost, and recovered as of its second night.

python3 -m tests.lab.demo [run|down]
"""

from __future__ import annotations

import argparse
import difflib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.data import change, inventory_of, seed
from tests.lab.lab import Lab
from tests.lab.prefect_server import PrefectServer
from tests.lab.process import LabError
from tests.lab.progress import phase, say
from tests.lab.site import Site


class Demo:
    """The demo's world: the lab, a GBS site on it, a Prefect server, and what was measured."""

    def __init__(self, name: str = "demo") -> None:
        self.lab = Lab(name)
        self.site = Site(self.lab)
        self.server = PrefectServer(self.lab.directory / "prefect")
        self.steps: list[tuple[str, float]] = []
        self.notes: list[str] = []

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A titled and measured step."""
        say(f"\n=== {title}")
        began = time.monotonic()
        yield
        self.steps.append((title, time.monotonic() - began))

    @property
    def environment(self) -> dict[str, str]:
        """What every command of GBS runs with."""
        return {**self.server.environment, "GBS_INVENTORY": str(self.site.inventory)}

    def gbs(self, *words: str, capture: bool = False) -> str:
        """Run a command of GBS as an operator would; its progress goes to the terminal. LabError when it fails."""
        command, *arguments = words
        say(f"$ {' '.join(words)}")
        done = subprocess.run(
            [str(Path(sys.executable).parent / command), *arguments],
            env=self.environment,
            stdout=subprocess.PIPE if capture else None,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 3):
            raise LabError(f"{' '.join(words)} ended with {done.returncode}")
        return done.stdout or ""

    def set_up(self) -> None:
        """Lab, site, Prefect server, blocks, deployments, worker; what is there is reused."""
        with self.step("Set-up: KVM host and VM, GBS site, Prefect"):
            self.lab.up(meanwhile=self._prefect_up)
            self.gbs("gbs", "check")
            if not self._night:
                seed(self.lab)

    def _prefect_up(self) -> None:
        self.site.create()
        with phase("Prefect server and UI"):
            self.server.start()
        say(f"Watch the runs: {self.server.ui}/runs")
        self.gbs("gbs", "inventory", "validate")
        self.gbs("gbs", "apply")
        self.gbs("gbs", "deploy")
        self.server.start_worker("gbs", {"GBS_INVENTORY": str(self.site.inventory)})

    @property
    def _night(self) -> int:
        note = self.lab.directory / "night"
        return int(note.read_text()) if note.exists() else 0

    def nights(self) -> None:
        """Two nights, with a day's work in the VM between them."""
        images = len(self._images())
        with self.step("First night: prepare, overnight, image if due, permanent"):
            self.gbs("gbs", "run", "nightly")
        first = self._images()
        self.notes.append(f"first night: {len(first) - images} image(s) taken; {self._moved()}")
        night = self._night + 1
        with self.step("A day's work: files and rows change in the VM"):
            change(self.lab, night)
            (self.lab.directory / "night").write_text(str(night))
        with self.step("Second night"):
            self.gbs("gbs", "run", "nightly")
        if self._images() != first:
            raise LabError("the second night copied the image again")
        self.notes.append(f"second night: the image was not copied again; {self._moved()}")
        self.gbs("gbs", "status")
        self.gbs("gbs", "list", "points")

    def disaster(self) -> None:
        """Destroy the VM, its definition and its disks."""
        with self.step("Disaster: the VM, its definition and its disks are destroyed"):
            host = self.lab.kvm1
            disks = host.run(["virsh", "-q", "domblklist", "web1", "--details"]).stdout.split()
            files = [word for word in disks if word.startswith("/")]
            for argv in (
                ["virsh", "destroy", "web1"],
                ["virsh", "undefine", "web1", "--checkpoints-metadata"],
                ["rm", "-v", "--", *files],
            ):
                say(f"kvm1$ {' '.join(argv)}")
                say(host.run(argv).stdout.strip())
            say(host.run(["virsh", "list", "--all"]).stdout.strip())

    def recover(self) -> None:
        """Bring the VM back, and compare it over plain ssh with what it was on the second night."""
        with self.step("Recovery: gbs recover vm web1 --yes"):
            recovered = json.loads(self.gbs("gbs", "recover", "vm", "web1", "--yes", "--json", capture=True))
        for step in recovered["steps"]:
            self.notes.append(f"recovery: {step['name']}: {step['seconds']:.0f} s")
        self.notes.append(f"recovery: {recovered['bytes_moved'] / 1e6:.0f} MB moved")

    def run(self) -> None:
        """All of it."""
        began = time.monotonic()
        self.set_up()
        self.nights()
        with self.step("What the VM is like on its second night (listed over plain ssh)"):
            before = inventory_of(self.lab)
        self.disaster()
        self.recover()
        with self.step("Proof over plain ssh: files, owners, modes, links, ACLs, xattrs, rows"):
            after = inventory_of(self.lab)
            require_same(before, after)
            say(f"all {len(after.splitlines())} lines of the listing are the same")
        self.report(time.monotonic() - began)

    def report(self, total_s: float) -> None:
        """What was done, how long it took, what moved, and where to look."""
        say("\n=== Report")
        for title, seconds in self.steps:
            say(f"{seconds:7.0f} s  {title}")
        say(f"{total_s:7.0f} s  in all")
        for note in self.notes:
            say(f"           {note}")
        say(f"\nThe VM runs again. Prefect's UI keeps running until `make lab-down`: {self.server.ui}/runs")
        say(f"Recover it again from the form: {self.server.ui}/deployments (recover-vm)")

    def _images(self) -> list[str]:
        return sorted(path.parent.name for path in self.site.store.glob("images/*/*/*/manifest.json"))

    def _moved(self) -> str:
        newest = max(self.site.store.glob("reports/nightly-*.json"), key=lambda path: path.stat().st_mtime)
        results = json.loads(newest.read_text())["results"]
        by_stage: dict[str, int] = {}
        for result in results:
            by_stage[result["stage"]] = by_stage.get(result["stage"], 0) + result["bytes_moved"]
        return ", ".join(f"{stage} {size / 1e6:.1f} MB" for stage, size in by_stage.items() if size)

    def down(self) -> None:
        """End what the demo started and remove what it made; the cache of guests stays."""
        self.server.stop()
        self.lab.down()


def require_same(before: str, after: str) -> None:
    """Raise LabError with the difference unless the two listings are the same."""
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=0))
    if lines:
        shown = "\n".join(lines[:40])
        raise LabError(f"the recovered VM differs from what it was ({len(lines)} lines of difference):\n{shown}")


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is returned."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab.demo", description=__doc__)
    parser.add_argument("command", nargs="?", default="run", choices=["run", "down"])
    parser.add_argument("--name", default="demo", help="which lab (default: demo)")
    options = parser.parse_args(argv)
    demo = Demo(options.name)
    try:
        demo.down() if options.command == "down" else demo.run()
    except LabError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
