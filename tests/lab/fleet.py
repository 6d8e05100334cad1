"""Many clients without a VM: folders of one system behind one sshd, each declared as a client, and a GBS site for them.

Facts of every one are those of that one system; their files, nights and restore points are their own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tasks.drivers.store import Store
from tasks.model.outcome import StageResult
from tasks.model.report import Report
from tasks.model.ssh_target import SshTarget
from tests.lab.database_client import DatabaseClient
from tests.lab.leftovers import LABS, sweep
from tests.lab.link import SlowLink
from tests.lab.prefect_server import PrefectServer
from tests.lab.recovery_key import recovery_key
from tests.lab.sshd import make_key

BIN = Path(sys.executable).parent
STORE_ID = "lab-fleet"


class Fleet:
    """The fleet's world below LABS/`name`; make files of clients before `start`, and declare them before `gbs`."""

    def __init__(self, name: str) -> None:
        self.directory = LABS / name
        self.directory.mkdir(parents=True, mode=0o700)
        self.private_key = self.directory / "id_ed25519"
        self.known_hosts = self.directory / "known_hosts"
        self.inventory = self.directory / "inventory.yaml"
        self.store = Store(self.directory / "store")
        self.permanent = self.directory / "permanent"
        self.system = DatabaseClient("fleet", self.directory / "system", make_key(self.private_key, "gbs fleet"))
        self.server = PrefectServer(self.directory / "prefect")
        self._links: list[SlowLink] = []
        self._begun: list[subprocess.Popen[bytes]] = []

    def make_files(self, client: str, count: int, size_bytes: int) -> None:
        """Give a client so many files of random content, a hundred a folder; only before `start`."""
        folder = self.outside(client)
        for number in range(count):
            path = folder / f"{number // 100:04}" / f"{number % 100:02}"
            if number % 100 == 0:
                path.parent.mkdir(parents=True)
            with path.open("wb") as file:
                for at in range(0, size_bytes, 1 << 20):
                    file.write(os.urandom(min(1 << 20, size_bytes - at)))

    @staticmethod
    def folder(client: str) -> str:
        """The folder that is this client, on the system that they share."""
        return f"/srv/{client}"

    def outside(self, client: str) -> Path:
        """That folder as this machine sees it, to be written only before `start`."""
        return self.system.directory / "upper" / self.folder(client).lstrip("/")

    def start(self) -> None:
        """Start the system, the empty stores and the Prefect server."""
        self.system.start()
        self._trust(self.system.ssh_port)
        for folder in (self.store.root, self.permanent):
            folder.mkdir(mode=0o700)
        (self.store.root / ".gbs-near-store").touch()
        (self.permanent / ".gbs-store").write_text(f"{STORE_ID}\n")
        self.server.start()

    def link(self, *, delay_s: float = 0.0, bytes_per_s: int = 0) -> int:
        """The port of a slow link to the system."""
        link = SlowLink(
            self.directory / f"link-{len(self._links)}", self.system.ssh_port, delay_s=delay_s, bytes_per_s=bytes_per_s
        )
        self._links.append(link)
        link.start()
        self._trust(link.port)
        return link.port

    def _trust(self, port: int) -> None:
        key = self.system.known_hosts_line.partition(" ")[2]
        with self.known_hosts.open("a") as file:
            file.write(f"[127.0.0.1]:{port} {key}\n")

    def declare(self, ports: Mapping[str, int]) -> None:
        """Declare clients, each behind a port of 127.0.0.1, in this order, and make the blocks of the site."""
        keys = {"private_key_file": str(self.private_key), "known_hosts_file": str(self.known_hosts)}
        declaration: dict[str, Any] = {
            "site": "fleet",
            "store": {"path": str(self.store.root)},
            "permanent": {"path": str(self.permanent), "store_id": STORE_ID, "kind": "local"},
            "server": {"recovery_keys": [recovery_key(self.directory / "recovery-key")]},
            "identities": {"default": keys},
            "clients": {
                name: {"address": "127.0.0.1", "port": port, "paths": [self.folder(name)]}
                for name, port in ports.items()
            },
        }
        self.inventory.write_text(yaml.safe_dump(declaration, sort_keys=False))
        subprocess.run([str(BIN / "gbs"), "apply"], env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def target(self, client: str, port: int) -> SshTarget:
        """How a client is reached, as GBS reaches it."""
        return SshTarget(client, "127.0.0.1", "root", port, self.private_key, self.known_hosts)

    @property
    def environment(self) -> dict[str, str]:
        """What every command of GBS runs with."""
        return {**self.server.environment, "GBS_INVENTORY": str(self.inventory)}

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command of GBS as an operator would; it writes to gbs.log."""
        with (self.directory / "gbs.log").open("ab") as log:
            begun = subprocess.Popen(
                [str(BIN / "gbs"), *words], env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._begun.append(begun)
        return begun

    def report(self, run: str) -> tuple[StageResult, ...]:
        """What the newest run of this name did."""
        newest = max(self.store.reports.glob(f"{run}-*.json"), key=lambda path: path.stat().st_mtime)
        return Report.model_validate(json.loads(newest.read_text())).results

    def remove(self) -> None:
        """End and remove all of it."""
        for begun in self._begun:
            begun.kill()
            begun.wait()
        for link in self._links:
            link.stop()
        self.server.stop()
        self.system.remove()
        shutil.rmtree(self.directory, ignore_errors=True)


@contextmanager
def fleet_of(name: str) -> Iterator[Fleet]:
    """A fleet, not started yet, that is ended and removed whatever happens; what a killed run left goes first."""
    sweep()
    fleet = Fleet(name)
    try:
        yield fleet
    finally:
        fleet.remove()
