"""A GBS site in a folder, real but for what lies beyond ssh: clients, hypervisor and rsync answer from here."""

import hashlib
import json
import shlex
import shutil
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Task

from tasks import (
    database_recovery,
    devices,
    file_recovery,
    files,
    hooks,
    image_files,
    images,
    nights,
    places,
    points,
    preparation,
    recovery,
    recovery_assessment,
    replication,
    reports,
    snapshots,
    updating,
    windows,
)
from tasks.drivers import (
    backup_job,
    client_snapshot,
    databases,
    disk_copy,
    disk_sources,
    facts,
    libvirt_host,
    live_image,
    near_store,
    offline_image,
    restore_points,
    rsnapshot,
    rsync,
    ssh,
    vm_parts,
)
from tasks.drivers.chunks import SUFFIX, write_chunks
from tasks.drivers.disk_sources import DiskSource
from tasks.drivers.journal import Journal
from tasks.drivers.permanent import PermanentPlace
from tasks.drivers.rsync import Transferred, Wanted
from tasks.drivers.snaplive import Window
from tasks.drivers.snaplive_settle import DiskOutcome
from tasks.drivers.ssh import Output
from tasks.model.client_snapshot import SnapshotTree
from tasks.model.databases import EngineName
from tasks.model.domain_xml import parse_domain
from tasks.model.facts import Facts
from tasks.model.facts_disks import BlockDevice
from tasks.model.facts_mounts import FileSystem
from tasks.model.inventory import Inventory
from tasks.model.manifest import DumpRecord, SourceRecord, VmParts
from tasks.model.ssh_target import SshTarget
from tasks.model.window import Layer, PlannedDisk, Step, WindowPlan, overlay_path, select_disks
from tasks.model.window_decision import Action, Power

TASK_MODULES = (
    *(devices, files, hooks, images, nights, points, preparation, recovery, replication, reports, snapshots),
    *(recovery_assessment, updating, windows, file_recovery, image_files, database_recovery),
)
UUID = "6d0fa9b4-6d5c-4f0e-9d59-0c5d7ad2c001"
DISK_BYTES = 1 << 20
STORE_ID = "flow-tests"
RECOVERY_KEY = "age17nv32tnpdhnu0xszx4fyzq3glfr8y4wg0p2hdw2tyj8u968cgfysdxfnt3"
DOMAIN_XML = f"""<domain type='kvm'>
  <name>web1</name>
  <uuid>{UUID}</uuid>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='/var/lib/libvirt/images/web1.raw'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='network'><source network='lan'/><mac address='52:54:00:00:00:01'/></interface>
  </devices>
</domain>
"""


class FakeSite:
    """What the faked tools were asked for (`calls`: verb, system) and what they answer; `fail` makes them break."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store, self.permanent, self.inventory = root / "store", root / "permanent", root / "inventory.yaml"
        self.calls: list[tuple[str, str]] = []
        self.power = Power.ON
        self.copied_bytes = DISK_BYTES
        self.pulled: list[str] = []
        self.running_engines: set[EngineName] = {"postgresql"}
        self.files: dict[str, dict[str, bytes]] = {}
        self.policies: dict[str, Any] = {}
        self.snapshot_warnings: tuple[str, ...] = ()
        self.snapshots_left: list[str] = []
        self.answering: set[str] = set()
        """The clients that answer at their address before they are brought back."""
        self._last_night: dict[str, int] = {}
        self._failures: dict[tuple[str, str], list[Exception]] = {}

    def create(self, marker: str | None = STORE_ID) -> None:
        """Empty stores, a marker, and the inventory with one KVM host and two clients, of which one is a VM."""
        for folder in (self.store, self.permanent):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for name in ("key", "known_hosts"):
            (self.root / name).touch()
        (self.store / near_store.MARKER).touch()
        if marker is not None:
            (self.permanent / ".gbs-store").write_text(f"{marker}\n")
        self.files = {
            "kvm1": {"/etc/libvirt/qemu/web1.xml": DOMAIN_XML.encode()},
            "web1": {"/etc/hostname": b"web1\n", "/srv/page": b"one\n"},
            "db1": {"/etc/hostname": b"db1\n"},
        }
        self.declare({"kvm1": {"address": "kvm1.test", "paths": ["/etc"]}}, self.clients())

    @staticmethod
    def clients() -> dict[str, Any]:
        """The clients that a new site declares."""
        return {
            "web1": {"address": "web1.test", "vm": "web1"},
            "db1": {"address": "db1.test", "databases": [{"engine": "postgresql"}]},
        }

    def declaration(self, kvm_hosts: dict[str, Any], clients: dict[str, Any]) -> dict[str, Any]:
        """An inventory of these systems."""
        keys = {"private_key_file": str(self.root / "key"), "known_hosts_file": str(self.root / "known_hosts")}
        return {
            "site": "test",
            "store": {"path": str(self.store), "reserve_bytes": 0},
            "permanent": {"path": str(self.permanent), "store_id": STORE_ID, "kind": "local"},
            "server": {"recovery_keys": [RECOVERY_KEY]},
            "identities": {"default": keys},
            "policies": self.policies,
            "kvm_hosts": kvm_hosts,
            "clients": clients,
        }

    def declare(self, kvm_hosts: dict[str, Any], clients: dict[str, Any]) -> None:
        """Write the inventory."""
        self.inventory.write_text(yaml.safe_dump(self.declaration(kvm_hosts, clients), sort_keys=False))

    def declared(self) -> Inventory:
        """The inventory as it is read."""
        return places.inventory()

    def fail(self, verb: str, system: str, *errors: Exception) -> None:
        """Let the next calls of `verb` on `system` raise these errors, one each."""
        self._failures[verb, system] = list(errors)

    def call(self, verb: str, system: str) -> None:
        """Note a call, and break if it is to break."""
        self.calls.append((verb, system))
        if waiting := self._failures.get((verb, system)):
            raise waiting.pop(0)

    def count(self, verb: str, system: str) -> int:
        """How often `verb` was called on `system`."""
        return self.calls.count((verb, system))

    def of(self, system: str) -> list[str]:
        """The verbs that were called on `system`, in order."""
        return [verb for verb, called in self.calls if called == system]

    def journal(self) -> Journal:
        """The journal of the VM's windows."""
        return places.journal("kvm1", UUID)

    def latest_report(self, run: str) -> dict[str, Any]:
        """The newest report of `run` in the store."""
        newest = max((self.store / "reports").glob(f"{run}-*.json"), key=lambda path: path.stat().st_mtime)
        found: dict[str, Any] = json.loads(newest.read_text())
        return found

    # What the fakes do.

    @contextmanager
    def connect(self, target: SshTarget) -> Iterator["FakeShell"]:
        """Stands for ssh.connect."""
        self.call("connect", target.name)
        yield FakeShell(self, target)

    @contextmanager
    def hypervisor(self, target: SshTarget, uri: str) -> Iterator[object]:
        """Stands for libvirt_host.connect."""
        self.call("libvirt", target.name)
        yield types.SimpleNamespace(
            name=target.name,
            domain_names=lambda: ["web1", "stray"],
            domain=lambda _: types.SimpleNamespace(name="web1", xml=lambda: DOMAIN_XML, call=lambda *_, **__: 0),
            versions=lambda: {"libvirt": "9.0.0", "qemu": "7.2.0"},
        )

    def facts(self, shell: "FakeShell", now: datetime) -> Facts:
        """Stands for facts.collect. A night's id is its second: one does not begin in that of the last."""
        self.call("facts", shell.target.name)
        while int(time.time()) <= self._last_night.get(shell.target.name, 0):
            time.sleep(0.02)
        return Facts(
            collected=now,
            hostname=shell.target.name,
            os_id="debian",
            os_version="12",
            os_name="Debian 12",
            kernel="6.1",
            architecture="x86_64",
            boot_mode="bios",
            machine_id="",
            block_devices=(BlockDevice(name="vda", type="disk", size_bytes=DISK_BYTES),),
            file_systems=(
                FileSystem(mountpoint="/", source="/dev/vda", fstype="ext4", uuid="u", size_bytes=1, used_bytes=1),
            ),
        )

    def dump(self, shell: "FakeShell", verb: str, engine: Any, database: str) -> DumpRecord:
        """A dump on the client, which its next pull brings."""
        name = shell.target.name
        self.call(verb, name)
        path = f"/var/backups/gbs/{engine}/{database or 'accounts'}.dump"
        self.files[name][path] = f"{engine} {database}".encode()
        content = self.files[name][path]
        return DumpRecord(
            engine=engine,
            kind="database" if database else "accounts",
            database=database,
            path=path,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )

    def pull(self, target: SshTarget, wanted: Wanted, destination: Path, **_: Any) -> Transferred:
        """Stands for rsync.pull."""
        self._last_night[target.name] = int(time.time())
        self.pulled = list(wanted.paths)
        for path, content in self.files[target.name].items():
            file = destination / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        self.call("pull", target.name)
        count, size = len(self.files[target.name]), sum(map(len, self.files[target.name].values()))
        return Transferred(files=count, changed=count, deleted=0, size_bytes=size, received_bytes=size, sent_bytes=0)

    def make_snapshots(self, shell: "FakeShell", paths: Sequence[str], *_: Any) -> SnapshotTree:
        """Stands for client_snapshot.make."""
        self.call("make snapshots", shell.target.name)
        return SnapshotTree(
            id="now",
            sources=(SourceRecord(place="/", kind="btrfs", instant=datetime(2026, 11, 2, tzinfo=UTC)),),
            reads={path: f"/snapshots/.{path}" for path in paths},
            left_out=("/hidden/*",),
            warnings=self.snapshot_warnings,
        )

    def clear_snapshots(self, shell: "FakeShell") -> list[str]:
        """Stands for client_snapshot.clear."""
        self.call("clear snapshots", shell.target.name)
        return self.snapshots_left

    def copy(
        self, _shell: object, target: SshTarget, _vm: str, disks: Sequence[disk_copy.StillDisk], folder: Path, *_: Any
    ) -> int:
        """Stands for disk_copy.copy."""
        for disk in disks:
            self.call("copy disk", target.name)
            file = folder / disk_copy.taken(disk).file
            file.write_bytes(bytes(self.copied_bytes))
            write_chunks(file.with_name(file.name + SUFFIX), {})
        return len(disks) * self.copied_bytes

    def capture(self, _host: object, _shell: object, _target: object, _domain: object, folder: Path) -> VmParts:
        """Stands for vm_parts.capture."""
        (folder / "domain.xml").write_text(DOMAIN_XML)
        return VmParts()

    def sources(self, *_: Any, **__: Any) -> list[DiskSource]:
        """Stands for disk_sources.find."""
        layer = Layer(path="/var/lib/libvirt/images/web1.raw", format="raw")
        return [DiskSource("vda", (layer,), DISK_BYTES, DISK_BYTES, keeps_bitmaps=False)]

    def open_window(self, _host: object, _shell: object, journal: Journal, _vm: str, run_id: str, **_: Any) -> Window:
        """Stands for snaplive.open_window: the journal is real."""
        self.call("open window", "web1")
        disks = tuple(
            PlannedDisk(
                target=disk.target,
                base=str(disk.source),
                format="raw",
                inode=1,
                overlay=overlay_path(str(disk.source), run_id),
                virtual_size_bytes=DISK_BYTES,
            )
            for disk in select_disks(parse_domain(DOMAIN_XML)).taken
        )
        plan = WindowPlan(run=run_id, vm="web1", uuid=UUID, boot_id="b", xml=DOMAIN_XML, disks=disks)
        journal.append(Step.PREPARE, plan=plan)
        journal.append(Step.SNAPSHOT)
        return Window(plan, datetime.now(UTC), "file-system", "", 0.1, (), ())

    def close_window(self, _host: object, _shell: object, journal: Journal, **_: Any) -> list[DiskOutcome]:
        """Stands for snaplive_settle.close_window and .reconcile."""
        window = journal.open_window()
        if window is None:
            return []
        self.call("close window", "web1")
        for disk in window.plan.disks:
            journal.append(Step.PIVOTED, target=disk.target)
        journal.finish()
        return [
            DiskOutcome("web1", disk.target, Action.UNLINK, "the disk has pivoted to its base", True, disk.overlay)
            for disk in window.plan.disks
        ]

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put the fakes in the places of the tools, and let tasks retry at once."""
        patch.setenv("GBS_INVENTORY", str(self.inventory))
        patch.setattr(ssh, "connect", self.connect)
        patch.setattr(ssh, "answers", lambda target: target.name in self.answering)
        patch.setattr(libvirt_host, "connect", self.hypervisor)
        patch.setattr(facts, "collect", self.facts)
        patch.setattr(databases, "running_engines", self._running)
        patch.setattr(databases, "list_databases", lambda shell, *_: self._listed(shell))
        patch.setattr(
            databases, "dump_database", lambda shell, server, name, *_: self.dump(shell, "dump", server.engine, name)
        )
        patch.setattr(
            databases, "dump_accounts", lambda shell, server, *_: self.dump(shell, "accounts", server.engine, "")
        )
        patch.setattr(rsync, "pull", self.pull)
        patch.setattr(client_snapshot, "make", self.make_snapshots)
        patch.setattr(client_snapshot, "require_whole", lambda shell, *_: self.call("check", shell.target.name))
        patch.setattr(client_snapshot, "clear", self.clear_snapshots)
        patch.setattr(disk_copy, "copy", self.copy)
        patch.setattr(disk_sources, "find", self.sources)
        patch.setattr(vm_parts, "capture", self.capture)
        patch.setattr(rsnapshot, "sync", self._noting("sync", rsnapshot.sync))
        patch.setattr(restore_points, "rotate", self._noting("rotate", restore_points.rotate))
        patch.setattr(backup_job, "why_unsupported", lambda *_: "it is a fake")
        patch.setattr(live_image, "SAMPLE_S", 0.01)
        patch.setattr(live_image, "open_window", self.open_window)
        patch.setattr(live_image, "close_window", self.close_window)
        patch.setattr(windows, "open_window", self.open_window)
        patch.setattr(windows, "close_window", self.close_window)
        patch.setattr(windows, "reconcile", self.close_window)
        for module in (offline_image, windows):
            patch.setattr(module, "look", lambda *_, **__: types.SimpleNamespace(power=self.power))
        for module in TASK_MODULES:
            for task in vars(module).values():
                if isinstance(task, Task):
                    patch.setattr(task, "retry_delay_seconds", [0 for _ in range(task.retries)])

    def _running(self, shell: "FakeShell") -> set[EngineName]:
        return self.running_engines if shell.target.name == "db1" else set()

    def _listed(self, shell: "FakeShell") -> dict[str, int]:
        self.call("list databases", shell.target.name)
        return {"shop": 1000}

    def _noting(self, verb: str, real: Any) -> Any:
        def noted(place: PermanentPlace, config_or_root: Path, *rest: Any) -> Any:
            self.call(verb, config_or_root.stem)
            return real(place, config_or_root, *rest)

        return noted


class FakeShell:
    """Answers `stat` with the size of a disk, a hook and `true` by noting it; anything else is asked by a mistake."""

    def __init__(self, site: FakeSite, target: SshTarget) -> None:
        self.site, self.target = site, target

    def run(self, command: Sequence[str] | str, **_: Any) -> Output:
        """The answer to a command."""
        command = shlex.split(command) if isinstance(command, str) else command
        if command[0] == "hook":
            self.site.call(" ".join(command), self.target.name)
            return Output(0, "", "")
        if command == ["true"]:
            self.site.call("answer", self.target.name)
            return Output(0, "", "")
        assert command[0] == "stat", command
        return Output(0, f"{DISK_BYTES // 512} 512\n", "")

    run_to_end = run
