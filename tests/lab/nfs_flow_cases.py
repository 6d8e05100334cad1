"""Whole flows over a real NFSv4.2 mount, with a Prefect server of their own; in the guest of nfs_guest.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.permanent import permanent
from flows.verify_points import verify_points
from tasks import declaration, points
from tasks.drivers import rsnapshot
from tasks.drivers.permanent import PermanentPlace
from tasks.drivers.rsnapshot import render_config
from tasks.errors import ClientsFailed
from tests.flows.conftest import prefect_api_url  # noqa: F401 - a fixture
from tests.lab.nfs_sites import FAR, cable, wait_until
from tests.unit.points_site import Site

CLIENTS = ("web1", "db1")


@pytest.fixture(scope="module")
def stores(prefect_api_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The folder of the GBS server's store, and its inventory beside it; Prefect has its blocks."""
    root = tmp_path_factory.mktemp("flows")
    keys = {"private_key_file": str(root / "key"), "known_hosts_file": str(root / "known_hosts")}
    far = {"path": "/mnt/far", "store_id": "far-1", "kind": "nfs4", "export": "10.9.0.2:/"}
    inventory = {
        "site": "near",
        "store": {"path": str(root / "store"), "reserve_bytes": 0},
        "permanent": {**far, "mount_options": "vers=4.2,timeo=20"},
        "identities": {"default": keys},
        "clients": {name: {"address": f"{name}.test"} for name in CLIENTS},
    }
    (root / "inventory.yaml").write_text(yaml.safe_dump(inventory))
    declaration.apply(declaration.load(root / "inventory.yaml"))
    return root


class Clients:
    """The overnight copies of two clients, and what became of them."""

    def __init__(self, root: Path, place: PermanentPlace, folder: Path) -> None:
        self.store = root / "store"
        self.sites = {name: self._site(name, place, folder / name) for name in CLIENTS}

    def _site(self, name: str, place: PermanentPlace, folder: Path) -> Site:
        folder.mkdir()
        site = Site(folder, far=place)
        site.source = self.store / "overnight" / name
        site.source.parent.mkdir(parents=True, exist_ok=True)
        site.root = FAR / name
        return site

    def night(self, number: int, **more: str) -> None:
        for site in self.sites.values():
            site.night(number, {"same": "always", "number": str(number), **more})

    def at_the_server(self) -> list[dict[str, int | None]]:
        return [site.days() for site in self.sites.values()]


@pytest.fixture
def clients(stores: Path, place: PermanentPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clients]:
    monkeypatch.setenv("GBS_INVENTORY", str(stores / "inventory.yaml"))
    monkeypatch.setattr(points.sync, "retry_delay_seconds", [0, 0])
    (stores / "store").mkdir(exist_ok=True)
    (stores / "store/.gbs-near-store").touch()
    yield Clients(stores, place, tmp_path)
    subprocess.run(["rm", "-rf", str(stores / "store")], check=True)


def gbs(*words: str) -> subprocess.CompletedProcess[str]:
    """A command, in a process of its own."""
    run = "import sys; from flows.cli.main import main; sys.argv[0] = 'gbs'; main()"
    return subprocess.run([sys.executable, "-c", run, *words], capture_output=True, text=True, check=False)


def slow_config(*args: Any, **options: Any) -> str:
    return render_config(*args, **options).replace("--numeric-ids", "--numeric-ids --bwlimit=100k")


def outcomes(flow: Any, *args: Any) -> dict[str, str]:
    """The outcome of each client, and why; also when some failed."""
    try:
        results = flow(*args)
    except ClientsFailed as exc:
        results = exc.args[3]
    said = {row.client: f"{row.outcome.value} {'; '.join(row.reasons)}".strip() for row in results}
    return {client: said[client] for client in CLIENTS}


def rot(path: Path) -> None:
    """Turn a bit of a file at the server, below its file system, which does not notice."""
    subprocess.run(["sync", "--file-system", str(FAR)], check=True)
    blocks = subprocess.run(["xfs_bmap", str(path)], check=True, capture_output=True, text=True).stdout
    found = re.search(r"\]: (\d+)\.\.", blocks)
    assert found, blocks
    with Path("/var/lib/gbs-lab/far.xfs").open("r+b") as disk:
        disk.seek(int(found[1]) * 512)
        byte = disk.read(1)[0]
        disk.seek(int(found[1]) * 512)
        disk.write(bytes([byte ^ 1]))
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_server_that_is_silent_in_the_middle_fails_both_clients_and_a_second_run_is_told_who_works(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients.night(1)
    assert outcomes(permanent) == {"web1": "OK", "db1": "OK"}
    clients.night(2, large="x" * (8 << 20))
    found: list[dict[str, str]] = []
    with monkeypatch.context() as patch:
        patch.setattr(rsnapshot, "render_config", slow_config)
        thread = threading.Thread(target=lambda: found.append(outcomes(permanent)))
        thread.start()
        wait_until(lambda: all(list(FAR.glob(f"{name}/.sync/data/.large.*")) for name in CLIENTS))
        second = gbs("run", "permanent", "--client", "web1")
        assert thread.is_alive()
        cable("down")
        status = gbs("status")
        thread.join(120)
    assert second.returncode == 1, second
    assert f"client web1 is locked by another run: pid {os.getpid()} since" in second.stderr
    assert "store /mnt/far does not answer" in status.stderr
    assert "it last did at" in status.stderr
    for client in CLIENTS:
        assert found[0][client].startswith("FAILED store /mnt/far does not answer: ")
    cable("up")
    assert clients.at_the_server() == [{"daily.0": 1}] * 2
    assert outcomes(permanent) == {"web1": "OK", "db1": "OK"}
    assert clients.at_the_server() == [{"daily.0": 2, "daily.1": 1}] * 2


def test_damage_at_the_far_end_is_found_and_healed(clients: Clients) -> None:
    for number in (1, 2):
        clients.night(number)
        assert outcomes(permanent) == {"web1": "OK", "db1": "OK"}
    rot(FAR / "web1/daily.1/data/same")
    os.truncate(FAR / "db1/daily.0/data/same", 3)
    (FAR / "db1/daily.0/data/number").unlink()
    for site in clients.sites.values():
        with pytest.raises(subprocess.CalledProcessError):
            site.days()
    found = outcomes(verify_points)
    assert found["web1"].startswith("WARNING 1 damaged files were healed by good copies")
    assert found["db1"].startswith("WARNING 2 damaged files were healed by good copies")
    assert clients.at_the_server() == [{"daily.0": 2, "daily.1": 1}] * 2
    rot(FAR / "web1/daily.1/data/number")
    found = outcomes(verify_points)
    assert "daily.1: /number is damaged: expected what its listing says" in found["web1"]
    assert found["db1"] == "OK"
