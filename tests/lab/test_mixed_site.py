"""One night of all that is no VM, by the real flows: databases, other platforms, a daemon, a device; and no secrets.

Real are Prefect, ssh, rsync, the database servers and the rsync daemon; the platforms and the switch are stand-ins.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.database_client import DatabaseClient
from tests.lab.leftovers import LABS
from tests.lab.namespaced import Namespaced
from tests.lab.prefect_server import PrefectServer
from tests.lab.published import outcomes
from tests.lab.recovery_key import recovery_key
from tests.lab.scripted_device import IOS, ScriptedDevice
from tests.lab.sshd import free_port, make_key
from tests.lab.stand_in import StandIn

pytestmark = pytest.mark.timeout(600)
BIN = Path(sys.executable).parent
SECRETS = {
    "of the database account": "mariadb-2718281828",
    "of the cache": "redis-1414213562",
    "of the rsync daemon": "daemon-1618033988",
    "of the switch": "switch-0577215664",
    "that enables": "enable-0915965594",
    "in the switch's configuration": "community-1202056903",
}
SECRET_LINE = SECRETS["in the switch's configuration"]
CONFIGURATION = f"""hostname sw1
enable secret 5 {SECRET_LINE}
snmp-server community {SECRET_LINE} RO
interface Gi0/1
 switchport access vlan 7
end"""
FOLDERS = {"win1": "/cygdrive/c/Users", "sun1": "/export/home", "hp1": "/opt/data", "vms1": "/dka100/users"}
PLATFORMS = {"win1": "windows", "sun1": "solaris", "hp1": "hpux", "vms1": "openvms"}


class Processes:
    """The command lines and environments of all processes, looked at again and again while the block runs."""

    def __enter__(self) -> Processes:
        self.seen: set[bytes] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        own = {str(os.getpid()), "self", "thread-self"}
        while not self._ended.is_set():
            for path in (*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")):
                if path.parent.name not in own:
                    try:
                        self.seen.add(path.read_bytes())
                    except OSError:
                        continue
            time.sleep(0.02)


class MixedSite:
    """The systems, a GBS site that protects them, and a Prefect server."""

    def __init__(self, folder: Path, ends: ExitStack) -> None:
        self.folder, self.key = folder, make_key(folder / "id_ed25519", "gbs tests")
        self.server = PrefectServer(folder / "prefect")
        self.store, self.permanent = folder / "store", folder / "permanent"
        self.systems: dict[str, Namespaced] = {"db1": DatabaseClient("db1", folder / "db1", self.key)}
        for name, platform in PLATFORMS.items():
            self.systems[name] = StandIn(name, folder / name, self.key, platform)
        for system in self.systems.values():
            ends.callback(system.remove)
            system.start()
        self.switch = ScriptedDevice(
            dataclasses.replace(
                IOS,
                enable_secret=SECRETS["that enables"],
                commands={"show running-config": CONFIGURATION, "show startup-config": CONFIGURATION},
            ),
            password=SECRETS["of the switch"],
        )
        self.switch.start()
        ends.callback(self.switch.stop)
        self.fill()
        self.declare()
        ends.callback(self.server.stop)
        self.server.start()

    def fill(self) -> None:
        """Data on every system, and accounts with passwords."""
        db1 = self.systems["db1"]
        assert isinstance(db1, DatabaseClient)
        for engine, database in (("postgresql", "shop"), ("mariadb", "crm"), ("redis", "all")):
            db1.engine(engine, "start")
            db1.engine(engine, "fill", database)
        for engine, secret in (("mariadb", "of the database account"), ("redis", "of the cache")):
            db1.engine(engine, "account", SECRETS[secret])
            login = db1.engine(engine, "login", SECRETS[secret])
            db1.run(["sh", "-c", f"umask 077; cat > /etc/gbs-{engine}"], input_text=login)
        db1.run(["sh", "-c", "mkdir -p /srv/files && echo kept > /srv/files/one"])
        for name, path in FOLDERS.items():
            script = 'mkdir -p "$1/sub" && echo "$2" > "$1/sub/file"'
            self.systems[name].run(["sh", "-c", script, "sh", path, f"of {name}"])
        self.systems["vms1"].run(["mkdir", "-p", "/dka100/gbs"])

    def declare(self) -> None:
        """The inventory, and the files of secrets that it names."""
        known, devices = self.folder / "known_hosts", self.folder / "known_devices"
        known.write_text("".join(f"{system.known_hosts_line}\n" for system in self.systems.values()))
        self.switch.trust(devices)
        port = free_port()
        win1 = self.systems["win1"]
        assert isinstance(win1, StandIn)
        win1.start_rsync_daemon(port, "gbs", SECRETS["of the rsync daemon"])
        clients: dict[str, dict[str, Any]] = {
            name: {"platform": PLATFORMS[name], "paths": [path]} for name, path in FOLDERS.items()
        }
        daemon = {"module": "all", "port": port, "user": "gbs", "password_file": self.secret("of the rsync daemon")}
        clients["win1"] |= {"transport": "rsync-daemon", "daemon": daemon}
        clients["vms1"]["dump_folder"] = "/dka100/gbs"
        logins = [{"engine": engine, "login": f"/etc/gbs-{engine}"} for engine in ("mariadb", "redis")]
        clients["db1"] = {
            "paths": ["/srv", "/var/backups/gbs"],
            "databases": [{"engine": "postgresql"}, *logins],
        }
        for name, client in clients.items():
            client |= {"address": "127.0.0.1", "port": self.systems[name].ssh_port}
        for folder in (self.store, self.permanent):
            folder.mkdir()
        (self.store / ".gbs-near-store").touch()
        (self.permanent / ".gbs-store").write_text("mixed\n")
        identity = {"private_key_file": str(self.folder / "id_ed25519"), "known_hosts_file": str(known)}
        login = {"user": self.switch.user, "known_hosts_file": str(devices)}
        login |= {"password_file": self.secret("of the switch"), "enable_file": self.secret("that enables")}
        declared = {
            "store": {"path": str(self.store)},
            "permanent": {"path": str(self.permanent), "store_id": "mixed", "kind": "local"},
            "server": {"recovery_keys": [recovery_key(self.folder / "recovery-key")]},
            "identities": {"default": identity},
            "clients": clients,
            "logins": {"default": login},
            "devices": {"sw1": {"address": "127.0.0.1", "port": self.switch.port, "type": "cisco_ios"}},
        }
        self.inventory.write_text(yaml.safe_dump(declared))

    def secret(self, name: str) -> str:
        """A file that holds the secret, for root only."""
        path = self.folder / name.replace(" ", "-")
        path.write_text(SECRETS[name] + "\n")
        path.chmod(0o600)
        return str(path)

    @property
    def inventory(self) -> Path:
        """What protects them."""
        return self.folder / "inventory.yaml"

    def gbs(self, *words: str, inventory: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run gbs as an operator does."""
        environment = {**self.server.environment, "GBS_INVENTORY": str(inventory or self.inventory)}
        argv = [str(BIN / "gbs"), *words]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.fixture(scope="module")
def mixed() -> Iterator[MixedSite]:
    folder = LABS / f"test-mixed-{os.getpid()}"
    folder.mkdir(parents=True)
    with ExitStack() as ends:
        ends.callback(shutil.rmtree, folder, ignore_errors=True)
        yield MixedSite(folder, ends)


class Night:
    """A night of all of it, what it said, and what was to be seen of processes meanwhile."""

    def __init__(self, mixed: MixedSite) -> None:
        with Processes() as processes:
            self.said = [mixed.gbs(*words) for words in (("apply",), ("check",), ("run", "nightly", "--json"))]
            changed = CONFIGURATION.replace("vlan 7", "vlan 8").replace(f" {SECRET_LINE}", f" {SECRET_LINE}-new")
            mixed.switch.dialect.commands["show running-config"] = changed
            self.said += [mixed.gbs("run", "devices"), mixed.gbs("device", "diff", "sw1")]
        self.processes = processes.seen
        self.night = self.said[2]


@pytest.fixture(scope="module")
def night(mixed: MixedSite) -> Night:
    return Night(mixed)


def test_every_client_and_the_device_are_good(night: Night) -> None:
    assert night.night.returncode == 0, night.night.stderr[-3000:]
    stages = ("prepare", "overnight", "permanent")
    expected = {(client, stage): "OK" for client in ("db1", *FOLDERS) for stage in stages}
    others = (("sw1", "device"), ("devices", "replicate"), ("GBS server", "recovery set"), ("GBS server", "replicate"))
    assert outcomes(night.night) == {**expected, **dict.fromkeys(others, "OK")}


def test_files_came_as_they_are(mixed: MixedSite, night: Night) -> None:
    for name, path in FOLDERS.items():
        for root in (mixed.store / "overnight" / name, mixed.permanent / name / "daily.0"):
            if name == "vms1":
                (saved,) = (root / "data/dka100/gbs").iterdir()
                argv = ["tar", "-xOf", str(saved), "./dka100/users/sub/file"]
                assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "of vms1\n"
            else:
                assert (root / "data" / path[1:] / "sub/file").read_text() == f"of {name}\n"
            argv = ["sha256sum", "--check", "--quiet", "--strict", "../SHA256SUMS"]
            subprocess.run(argv, cwd=root / "data", check=True)


def test_check_says_what_was_tried_against_a_stand_in_only(night: Night) -> None:
    checked = night.said[1]
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("stand-in only") == len(PLATFORMS)


def test_no_secret_is_in_what_is_said_logged_kept_by_prefect_or_seen_of_processes(
    mixed: MixedSite, night: Night
) -> None:
    places = {f"output {number}": f"{done.stdout}{done.stderr}".encode() for number, done in enumerate(night.said)}
    places["processes"] = b"\n".join(night.processes)
    kept = [
        path for name in ("prepared", "reports", "journal", "rsnapshot") for path in (mixed.store / name).rglob("*")
    ]
    kept += [*mixed.store.rglob("manifest.json"), *mixed.store.rglob("facts.json")]
    for path in (*mixed.server.directory.rglob("*"), *kept):
        if path.is_file() and not path.is_symlink():
            places[str(path)] = path.read_bytes()
    key = (mixed.folder / "id_ed25519").read_text().splitlines()[2]
    for called, secret in {**SECRETS, "ssh key": key}.items():
        found = [place for place, content in places.items() if secret.encode() in content]
        assert found == [], f"the secret {called} is in {found}"
    # What is looked through is what it is taken for.
    assert b"--password-file=" in places["processes"]
    assert b"mariadb-dump" in places["processes"]
    of_prefect = [content for place, content in places.items() if place.startswith(str(mixed.server.directory))]
    assert any(b"SQLite format 3" in content for content in of_prefect)
    assert any(b"switchport access vlan 8" in content for content in of_prefect), "the artifact of the change"


def test_configuration_is_kept_whole_for_root_only(mixed: MixedSite, night: Night) -> None:
    kept = [path for path in (mixed.store / "devices/sw1").rglob("*") if path.is_file()]
    whole = [path for path in kept if SECRET_LINE.encode() in path.read_bytes()]
    assert whole
    assert {path.stat().st_mode & 0o777 for path in whole} == {0o600}


def test_postgresql_down_is_partial_and_the_rest_goes_on(mixed: MixedSite, night: Night) -> None:
    db1 = mixed.systems["db1"]
    assert isinstance(db1, DatabaseClient)
    db1.engine("postgresql", "end")
    done = mixed.gbs("run", "nightly", "--client", "db1", "--json")
    assert done.returncode == 3, done.stderr[-3000:]
    assert outcomes(done) == {
        ("db1", "prepare"): "PARTIAL",
        ("db1", "overnight"): "PARTIAL",
        ("db1", "permanent"): "OK",
    }
    manifest = json.loads((mixed.permanent / "db1/daily.0/manifest.json").read_text())
    assert {dump["engine"] for dump in manifest["dumps"]} == {"mariadb", "redis"}
    assert manifest["outcome"] == "PARTIAL"
    assert (mixed.permanent / "db1/daily.0/data/srv/files/one").read_text() == "kept\n"


def test_wrong_host_key_is_refused_and_nothing_is_sent(mixed: MixedSite, night: Night, tmp_path: Path) -> None:
    db1, wrong, inventory = mixed.systems["db1"], tmp_path / "known_hosts", tmp_path / "inventory.yaml"
    key_of_another = mixed.systems["hp1"].known_hosts_line.split(" ", 1)[1]
    wrong.write_text(f"{db1.known_hosts_line.split(' ', 1)[0]} {key_of_another}\n")
    declared = yaml.safe_load(mixed.inventory.read_text())
    declared["identities"]["wrong"] = {**declared["identities"]["default"], "known_hosts_file": str(wrong)}
    declared["clients"]["db1"]["identity"] = "wrong"
    inventory.write_text(yaml.safe_dump(declared))
    listing = ["find", "/var/backups/gbs", "-printf", "%p %i %T@ %C@\\n"]
    before = db1.run(listing).stdout
    assert mixed.gbs("apply", inventory=inventory).returncode == 0
    done = mixed.gbs("run", "prepare", "--client", "db1", inventory=inventory)
    assert done.returncode == 1
    assert "its host key has changed" in done.stderr
    assert db1.run(listing).stdout == before != ""
