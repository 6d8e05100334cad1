"""A VM that is put on a KVM host and dies on the way: its own goes, what is not stays; judged by virsh and ls."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.drivers import recovery_files, recovery_put, recovery_target, vm_parts
from tasks.drivers.recovery_target import Need, Target
from tasks.model.assessment import Finding
from tasks.model.domain_capabilities import Fit
from tasks.model.domain_recovery import rewrite_for_recovery, run_of
from tasks.model.domain_whitelist import Wishes
from tasks.model.domain_xml import parse_domain
from tasks.model.manifest import DiskRecord, FileRecord, VmParts
from tasks.model.recovery import Sources
from tasks.model.recovery_plan import ISOLATED, Order, Plan, plan_of
from tasks.model.recovery_record import PutRecord, record_of
from tasks.model.ssh_target import SshTarget
from tests.lab.kvm_host import KvmHost
from tests.lab.mixed_guest import MixedGuest
from tests.lab.recovery_child import Recovery, perform, put
from tests.lab.sshd import make_key
from tests.lab.tiny_guest import TinyGuest, make_disk
from tests.lab.window_child import _processes, host_pid, reach
from tests.unit.records import ZEROS, image_manifest, night_manifest

pytestmark = pytest.mark.timeout(900)

CLONE_NEWNET = 0x40000000
CARDS = """<interface type='network'><source network='lan'/><mac address='52:54:00:00:00:01'/></interface>
<interface type='bridge'><source bridge='br0'/><mac address='52:54:00:00:00:02'/></interface>"""


def sources_of(
    vm: str,
    xml: str,
    folder: Path,
    disks: tuple[DiskRecord, ...],
    parts: VmParts,
    files: tuple[FileRecord, ...],
) -> Sources:
    """An image of the VM in that folder, and a night."""
    return Sources(
        vm=vm,
        client=vm,
        kvm_host="kvm1",
        xml=xml,
        image_folder=folder,
        image=image_manifest(vm=vm, disks=disks, parts=parts, files=files),
        night_name="overnight",
        night_folder=None,
        night=night_manifest(),
    )


class Lost:
    """A VM with a disk of each kind that is gone from its host, and what there is of it in a store."""

    def __init__(self, host: KvmHost, folder: Path) -> None:
        self.host, self.folder = host, folder
        guest = MixedGuest(host, "lost")
        guest.define()
        text = host.virsh("dumpxml", "--inactive", "lost")
        self.xml = text.replace("</devices>", f"{CARDS}</devices>")
        self.uuid = parse_domain(text).uuid
        self.own = folder / "own"
        self.own.mkdir(parents=True)
        self.files: dict[str, Path] = {}
        for disk in guest.disks:
            self.files[disk.target] = self.own / f"{disk.target}.{disk.format}"
            argv = ["qemu-img", "convert", "-f", disk.format, "-O", disk.format, str(guest.outside(disk.path))]
            subprocess.run([*argv, str(self.files[disk.target])], check=True)
        for role in ("nvram", "tpm"):
            self.files[role] = folder / role
        self.files["nvram"].write_bytes(b"variables")
        state = folder / "state" / self.uuid / "tpm2"
        state.mkdir(parents=True)
        (state / "tpm2-00.permall").write_bytes(b"state")
        subprocess.run(["tar", "-C", str(folder / "state"), "-cf", str(self.files["tpm"]), self.uuid], check=True)
        disks = tuple(
            DiskRecord(
                target=disk.target,
                file=f"{disk.target}.raw",
                format="raw",
                source=disk.path,
                source_format=disk.format,
                source_kind="block" if disk.target == "vdb" else "file",
                volume="lost-pool/lost-vdc.qcow2" if disk.target == "vdc" else "",
                virtual_size_bytes=disk.size_bytes,
            )
            for disk in guest.disks
        )
        names = [*(disk.file for disk in disks), "nvram", "tpm"]
        parts = VmParts(files={"nvram": "nvram"}, tpm_state="tpm")
        files = tuple(FileRecord(path=name, size_bytes=1, sha256=ZEROS) for name in names)
        self.sources = sources_of("lost", self.xml, folder, disks, parts, files)
        host.virsh("undefine", "lost")
        guest.loop and subprocess.run(["losetup", "--detach", guest.loop], check=True)
        for path in host.images.glob("lost-*"):
            path.unlink()
        host.virsh("pool-refresh", "lost-pool")

    def plan(self, **options: Any) -> Plan:
        order = Order(kvm_host="kvm1", **options)
        with reach(host_pid(self.host)) as (host, shell):
            pools = recovery_target.pools(Target(host, shell), ["lost-pool"])
        return plan_of(self.sources, order, "/var/lib/libvirt/images", pools)

    def findings(self, plan: Plan, earlier: PutRecord | None = None, **changed: Any) -> list[Finding]:
        with reach(host_pid(self.host)) as (host, shell):
            host.name = "kvm1"
            target = Target(host, shell)
            volumes = [disk.volume for disk in self.sources.image.disks]
            there = recovery_target.pools(target, ["lost-pool"])
            domain = replace(parse_domain(self.xml), **changed)
            return recovery_target.clashes(target, plan, domain, volumes, there, earlier)

    def recovery(self, plan: Plan, run: str = "run-1", **options: Any) -> Recovery:
        rewritten = rewrite_for_recovery(
            self.xml,
            Wishes(
                {disk.role: disk.path for disk in plan.disks},
                name=plan.identity.name,
                uuid=plan.identity.uuid,
                domain_type=parse_domain(self.xml).type,
                formats={disk.role: disk.format for disk in plan.disks},
                volumes={disk.role: disk.volume for disk in plan.disks if disk.volume},
                macs=plan.identity.macs,
                networks=plan.networks,
                run=run,
            ),
        )
        store = self.folder / "store"
        return Recovery(host_pid(self.host), store, plan, rewritten.xml, run, self.files, self.own, **options)

    def traces(self) -> str:
        """All that a recovery may leave on its host."""
        script = """
            virsh -q list --all --name; virsh -q net-list --all --name; virsh -q vol-list lost-pool | sort
            cd /var/lib/libvirt && ls -A images qemu/nvram && { ls -A swtpm 2>/dev/null || true; }
        """
        self.host.virsh("pool-refresh", "lost-pool")
        return self.host.run(["sh", "-c", script]).stdout


@contextmanager
def other(lost: Lost, name: str, uuid: str = "", devices: str = "") -> Iterator[None]:
    """Somebody else's VM on the host."""
    named = f"<name>{name}</name>" + (f"<uuid>{uuid}</uuid>" if uuid else "")
    system = "<memory>65536</memory><os><type arch='x86_64'>hvm</type></os>"
    text = f"<domain type='qemu'>{named}{system}<devices>{devices}</devices></domain>"
    lost.host.virsh("define", "/dev/stdin", input_text=text)
    try:
        yield
    finally:
        lost.host.virsh("undefine", name)


@pytest.fixture(scope="module")
def lost(kvm_host: KvmHost, lab_folder: Path) -> Iterator[Lost]:
    made = Lost(kvm_host, lab_folder / "lost")
    yield made
    for verb in ("pool-destroy", "pool-undefine"):
        kvm_host.run(["virsh", "-q", verb, "lost-pool"], check=False)


def die(task: Recovery) -> int | None:
    """Run it in a process of its own; how that ended."""
    child = _processes.Process(target=perform, args=(task,))
    child.start()
    child.join(120)
    assert not child.is_alive()
    return child.exitcode


def clear(lost: Lost, task: Recovery) -> list[str]:
    with reach(host_pid(lost.host)) as (host, shell):
        return recovery_put.clear(host, shell, task.ledger)


def test_recovery_killed_before_any_call_leaves_nothing_when_cleared(lost: Lost) -> None:
    before = lost.traces()
    plan = lost.plan(networks={"lan": "none", "br0": "none"})
    assert lost.findings(plan) == []
    calls = 0
    ended: int | None = -9
    while ended == -9:
        task = lost.recovery(plan, kill_before=calls)
        ended = die(task)
        if ended == -9:
            clear(lost, task)
            assert lost.traces() == before, f"killed before call {calls}"
            assert task.ledger.read() is None
        calls += 1
    assert ended == 0
    assert calls > 30
    host = lost.host
    assert host.virsh("domstate", "lost").strip() == "running"
    assert host.virsh("domuuid", "lost").strip() == lost.uuid
    assert "lost-vdc.qcow2" in host.virsh("vol-list", "lost-pool")
    kinds = {disk.target: disk.type for disk in parse_domain(host.virsh("dumpxml", "lost")).disks}
    assert kinds == {"vda": "file", "vdb": "file", "vdc": "volume"}
    assert (host.directory / f"root/var/lib/libvirt/swtpm/{lost.uuid}/tpm2/tpm2-00.permall").read_bytes() == b"state"
    assert (host.directory / "root/var/lib/libvirt/qemu/nvram/lost_VARS.fd").read_bytes() == b"variables"
    thin = (host.images / "lost-vdb.raw").stat()
    assert thin.st_size == 64 << 20
    assert thin.st_blocks * 512 < 8 << 20
    for kill_before in (2, 4, 7):
        assert die(lost.recovery(plan, kill_before=kill_before, verb="clear")) == -9
    assert len(clear(lost, task)) > 0
    assert lost.traces() == before


def test_what_is_in_the_way_refuses_before_anything_is_done(lost: Lost) -> None:
    def said(devices: str = "", name: str = "another", uuid: str = "", **options: Any) -> set[str]:
        with other(lost, name, uuid, devices):
            return {each.words.partition(";")[0] for each in lost.findings(lost.plan(**options))}

    apart: dict[str, Any] = {"networks": {"lan": "none", "br0": "none"}}
    assert said(**apart) == set()
    assert said(name="lost", **apart) == {"name: kvm1 has a VM of that name"}
    assert said(uuid=lost.uuid, **apart) == {f"UUID: kvm1 has a VM with its UUID {lost.uuid}"}
    card = "<interface type='user'><mac address='52:54:00:00:00:02'/></interface>"
    assert said(card, **apart) == {"MAC: 52:54:00:00:00:02 belongs to VM another on kvm1"}
    assert said(card, as_name="lost-2", **apart) == set()
    disk = "<disk type='file'><source file='/var/lib/libvirt/images/lost-vda.qcow2'/><target dev='vda'/></disk>"
    path = "/var/lib/libvirt/images/lost-vda.qcow2"
    assert said(disk, **apart) == {f"file of vda: VM another on kvm1 names {path}"}
    assert said() == {"network: kvm1 has no network lan", "bridge: kvm1 has no bridge br0"}
    (lost.host.images / "lost-vdc.qcow2").symlink_to("/nowhere")
    assert said(**apart) == {"file of vdc: /var/lib/libvirt/images/lost-vdc.qcow2 exists on kvm1"}
    (lost.host.images / "lost-vdc.qcow2").unlink()
    lost.host.virsh("pool-destroy", "lost-pool")
    assert said(**apart) == {"pool: pool lost-pool is not active"}
    lost.host.virsh("pool-start", "lost-pool")
    secret = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"
    (finding,) = lost.findings(lost.plan(**apart), tpm_secret=secret)
    assert finding.reason == f"kvm1 has no secret {secret}, which the TPM's state is encrypted with"
    usage = f"<secret><uuid>{secret}</uuid><usage type='vtpm'><name>of lost</name></usage></secret>"
    lost.host.virsh("secret-define", "/dev/stdin", input_text=usage)
    assert lost.findings(lost.plan(**apart), tpm_secret=secret) == []
    lost.host.virsh("secret-undefine", secret)


def test_room_is_counted_as_allocated_and_for_all_files_of_a_file_system(lost: Lost) -> None:
    plan = lost.plan()
    with reach(host_pid(lost.host)) as (host, shell):
        host.name = "kvm1"
        target = Target(host, shell)
        free = shutil.disk_usage(lost.host.images).free
        assert recovery_target.room(target, plan, dict.fromkeys(("vda", "vdb", "vdc"), Need(1 << 20))) == []
        halves = {"vda": Need(free // 2), "vdb": Need(free // 2), "vdc": Need(1 << 30)}
        (finding,) = recovery_target.room(target, plan, halves)
        there = halves | {"vda": Need(free // 2, there_bytes=2 << 30)}
        assert recovery_target.room(target, plan, there) == [], "an earlier run's own makes room when it goes"
        thin = {"vda": Need(1 << 20, most_bytes=2 * free)}
        assert recovery_target.room(target, plan, thin, growth_bytes=1 << 20) == []
        assert len(recovery_target.room(target, plan, thin, growth_bytes=2 * free)) == 1, "the night's files do not fit"
        full = {"vda": Need(1 << 20, most_bytes=2 << 20)}
        assert recovery_target.room(target, plan, full, growth_bytes=2 * free) == [], "no disk outgrows its size"
    assert "/var/lib/libvirt/images on kvm1 has" in finding.reason


def test_what_the_host_lacks_is_replaced_or_refuses(lost: Lost) -> None:
    def fit(text: str, *, tpm: bool = False) -> tuple[Fit, list[str]]:
        with reach(host_pid(lost.host)) as (host, shell):
            found, said = recovery_target.capabilities(Target(host, shell), parse_domain(text), tpm=tpm)
        return found, [f"{each.verdict} {each.subject}" for each in said]

    def edited(**elements: str) -> str:
        root = ET.fromstring(lost.xml)
        kind = root.find("os/type")
        assert kind is not None
        kind.set("machine", elements.get("machine", "pc"))
        kind.set("arch", elements.get("arch", "x86_64"))
        if "cpu" in elements:
            for old in root.findall("cpu"):
                root.remove(old)
            root.append(ET.fromstring(elements["cpu"]))
        return ET.tostring(root, encoding="unicode").replace('type="kvm"', 'type="qemu"')

    assert fit(edited()) == (Fit(), [])
    rhel = edited(machine="pc-i440fx-rhel7.6.0", cpu="<cpu mode='custom' match='exact'><model>Nosuch-v9</model></cpu>")
    assert fit(rhel) == (Fit("pc", "host-model"), ["note machine type", "note CPU model"])
    assert fit(edited(machine="s390-ccw", arch="s390x"))[1] == ["refused emulator"]
    rewritten = rewrite_for_recovery(
        rhel, Wishes({"vda": "/a", "vdb": "/b", "vdc": "/c"}, name="fits", domain_type="qemu", machine="pc",
        cpu_mode="host-model", networks={}
    ))  # fmt: skip
    lost.host.virsh("define", "/dev/stdin", input_text=rewritten.xml)
    lost.host.virsh("undefine", "fits")


def test_second_vm_runs_beside_the_first_with_nothing_of_its_own(lost: Lost) -> None:
    before = lost.traces()
    networks = {"lan": "none", "br0": "none"}
    first, second = lost.plan(networks=networks), lost.plan(as_name="lost copy", networks=networks)
    tasks = [lost.recovery(first, "run-1"), lost.recovery(second, "run-2")]
    for task in tasks:
        assert lost.findings(task.plan) == []
        with reach(host_pid(lost.host)) as (host, shell):
            put(task, host, shell, task.ledger)
    texts = [lost.host.virsh("dumpxml", name) for name in ("lost", "lost copy")]
    parsed = [parse_domain(text) for text in texts]
    assert [run_of(text) for text in texts] == ["run-1", "run-2"]
    assert lost.host.virsh("domstate", "lost copy").strip() == "running"
    assert {disk.source for disk in parsed[0].disks}.isdisjoint({disk.source for disk in parsed[1].disks})
    assert set(parsed[0].macs) == {"52:54:00:00:00:01", "52:54:00:00:00:02"}
    assert all(mac.startswith("02:") for mac in parsed[1].macs)
    assert clear(lost, tasks[1])
    assert lost.host.virsh("domstate", "lost").strip() == "running"
    assert clear(lost, tasks[0])
    assert lost.traces() == before


def test_second_vm_is_known_by_its_name_or_its_uuid(lost: Lost) -> None:
    identity = lost.plan(as_name="lost 2").identity
    with reach(host_pid(lost.host)) as (host, _):
        assert recovery_target.known(host, identity) is None
        for name, uuid in (("lost 2", ""), ("renamed", identity.uuid)):
            with other(lost, name, uuid):
                found = recovery_target.known(host, identity)
                assert found is not None
                assert found.name == name


def test_what_an_earlier_run_left_hides_nothing_else_that_is_in_the_way(lost: Lost) -> None:
    before, plan = lost.traces(), lost.plan(networks={"lan": "none", "br0": "none"})
    task = lost.recovery(plan)
    with reach(host_pid(lost.host)) as (host, shell):
        put(task, host, shell, task.ledger)
        record = task.ledger.read()
        assert record is not None
        lost.host.virsh("destroy", "lost")
        assert {each.subject for each in lost.findings(plan)} >= {"name", "UUID", "file of vda", "file of tpm"}
        assert lost.findings(plan, record) == []
        allocated = {place.path: du(lost, place.path) for place in plan.places}
        assert recovery_files.taken_bytes(shell, record) == allocated
        assert {each.subject for each in lost.findings(lost.plan(), record)} == {"network", "bridge"}
        vda = plan.disks[0].path
        lost.host.run(["sh", "-c", 'cp -- "$1" "$1.copy" && mv -- "$1.copy" "$1"', "sh", vda])
        assert {each.subject for each in lost.findings(plan, record)} == {"file of vda"}
        lost.host.run(["rm", vda])
        lost.host.run(["truncate", "--size=64K", f"{record.partial(vda)}"])
        lost.host.run(["fallocate", "--length=64K", f"{record.partial(vda)}"])
        assert recovery_files.taken_bytes(shell, record)[vda] == 64 << 10
    clear(lost, task)
    assert lost.traces() == before


def du(lost: Lost, path: str) -> int:
    return int(lost.host.run(["du", "-sB1", path]).stdout.split()[0])


def test_what_is_not_its_own_is_left_alone(lost: Lost) -> None:
    """A run dies; somebody else then takes the names that it had noted."""
    before = lost.traces()
    task = lost.recovery(lost.plan(networks={"lan": "none", "br0": "none"}), kill_before=5)
    assert die(task) == -9
    foreign = lost.host.images / "lost-vda.qcow2"
    foreign.write_text("somebody's")
    with other(lost, "lost", lost.uuid):
        clear(lost, task)
        assert lost.host.virsh("domuuid", "lost").strip() == lost.uuid
    assert foreign.read_text() == "somebody's"
    foreign.unlink()
    assert lost.traces() == before


def test_vm_that_was_started_is_left_alone_by_a_run_that_wants_something_else(lost: Lost) -> None:
    """Its run is killed when it runs; an operator uses it, shuts it down, undefines it: its disks stay till the end."""
    before, plan = lost.traces(), lost.plan(networks={"lan": "none", "br0": "none"})
    task = lost.recovery(plan)
    with reach(host_pid(lost.host)) as (host, shell):
        put(task, host, shell, task.ledger)
    other_night = record_of(plan, "", "web1", "image", "another night")
    other_network = record_of(lost.plan(networks={"lan": "user", "br0": "none"}), "", "web1", "image", "night")
    same = record_of(plan, "", "web1", "image", "night")

    def verdicts(*wanted: PutRecord) -> list[str]:
        record = task.ledger.read()
        assert record is not None
        with reach(host_pid(lost.host)) as (host, shell):
            return [recovery_put.settlement_of(host, shell, record, each).verdict for each in wanted]

    assert verdicts(same, other_night, other_network) == ["go on", "refused", "refused"]
    lost.host.virsh("destroy", "lost")
    assert verdicts(same, other_night, other_network) == ["go on", "refused", "refused"]
    lost.host.virsh("undefine", "lost", "--nvram")
    assert verdicts(same, other_night) == ["refused", "refused"], "it may run on another host, on the same disks"
    for place in plan.places:
        lost.host.run(["rm", "-rf", place.path])
    assert verdicts(same, other_night) == ["clear", "clear"]
    assert clear(lost, task) == []
    assert lost.traces() == before


def test_files_that_another_vm_has_by_now_stay(lost: Lost) -> None:
    """A run is killed before it defines its VM; somebody makes one with the disks that are there."""
    before, plan = lost.traces(), lost.plan(networks={"lan": "none", "br0": "none"})
    task = lost.recovery(plan)
    with reach(host_pid(lost.host)) as (host, shell):
        put(task, host, shell, task.ledger)
    lost.host.virsh("destroy", "lost")
    lost.host.virsh("undefine", "lost", "--nvram")
    by_path, volume = plan.disks[0].path, plan.disks[2].volume
    assert volume == "lost-pool/lost-vdc.qcow2"
    disks = (
        f"<disk type='file'><source file='{by_path}'/><target dev='vda'/></disk>"
        "<disk type='volume'><source pool='lost-pool' volume='lost-vdc.qcow2'/><target dev='vdb'/></disk>"
    )
    with other(lost, "made by hand", lost.uuid, disks):
        removed = clear(lost, task)
        kept = {place.path for place in plan.places} - set(removed)
        tpm = next(place.path for place in plan.parts if place.role == "tpm")
        assert {by_path, plan.disks[2].path, tpm} <= kept
        assert plan.disks[1].path in removed
    for path in kept:
        lost.host.run(["rm", "-rf", path])
    assert lost.traces() == before


def test_uefi_guest_with_a_tpm_starts_from_its_image_with_both_and_so_does_a_second_one(
    kvm_host: KvmHost, kvm_target: SshTarget, tmp_path: Path
) -> None:
    """Real UEFI variables and a real TPM, as libvirt made them when the guest was first started."""
    guest = TinyGuest(kvm_host, "efi", writes=False)
    (disk,) = guest.disks
    make_disk(guest.outside(disk.path), disk.format, disk.size_bytes, writes=False)
    text = guest.domain_xml().replace("machine='pc'", "machine='q35'").replace("<os>", "<os firmware='efi'>")
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    kvm_host.virsh("define", "/dev/stdin", input_text=text.replace("</devices>", f"{tpm}</devices>"))
    kvm_host.virsh("start", "efi")
    with reach(host_pid(kvm_host)) as (host, shell):
        parts = vm_parts.capture(host, shell, kvm_target, host.domain("efi"), tmp_path)
    kvm_host.virsh("destroy", "efi")
    kvm_host.virsh("undefine", "efi", "--nvram", "--tpm")
    own = tmp_path / "own"
    own.mkdir()
    shutil.move(guest.outside(disk.path), own / "vda.qcow2")
    xml = (tmp_path / "domain.xml").read_text()
    lost = Lost.__new__(Lost)
    lost.host, lost.folder, lost.own, lost.xml = kvm_host, tmp_path, own, xml
    lost.files = {"vda": own / "vda.qcow2", "nvram": tmp_path / "nvram", "tpm": tmp_path / "tpm.tar"}
    record = DiskRecord(
        target="vda", file="vda.raw", format="raw", source=disk.path, source_format="qcow2", virtual_size_bytes=1
    )
    files = tuple(FileRecord(path=name, size_bytes=1, sha256=ZEROS) for name in ("vda.raw", *parts.all_files))
    lost.sources = sources_of("efi", xml, tmp_path, (record,), parts, files)
    state = kvm_host.directory / "root/var/lib/libvirt/swtpm"
    for as_name in (None, "efi 2"):
        plan = lost.plan(as_name=as_name)
        task = lost.recovery(plan)
        uuid = plan.identity.uuid
        with reach(host_pid(kvm_host)) as (host, shell):
            _, said = recovery_target.capabilities(Target(host, shell), parse_domain(xml), tpm=True)
            assert said == []
            put(task, host, shell, task.ledger)
        assert kvm_host.virsh("domstate", uuid).strip() == "running"
        root = ET.fromstring(kvm_host.virsh("dumpxml", uuid))
        assert root.findtext("os/nvram") == next(place.path for place in plan.parts if place.role == "nvram")
        assert (state / uuid / "tpm2/tpm2-00.permall").is_file()
        assert clear(lost, task)
        assert not (state / uuid).exists()


def _isolated(folder: Path) -> None:
    """In a network namespace of its own, as libvirt makes a bridge."""
    assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    folder.mkdir()
    host = KvmHost("kvm1", folder / "kvm1", make_key(folder / "id_ed25519", "gbs tests"))
    host.start()
    try:
        lost = Lost(host, folder / "lost")
        before = lost.traces()
        plan = lost.plan(isolated=True)
        assert lost.findings(plan) == []
        task = lost.recovery(plan)
        with reach(host_pid(host)) as (connected, shell):
            put(task, connected, shell, task.ledger)
        cards = [line.split()[1:3] for line in host.virsh("domiflist", "lost").splitlines() if line.split()]
        assert cards == [["network", ISOLATED]] * 2
        definition = host.virsh("net-dumpxml", ISOLATED)
        assert not recovery_target.leads_out(definition)
        (bridge,) = re.findall("<bridge name='([^']+)'", definition)
        addresses = subprocess.run(
            ["ip", "-4", "-o", "address", "show", "dev", bridge], capture_output=True, check=True
        )
        assert addresses.stdout == b"", "its host has no address on it"
        assert lost.findings(lost.plan(isolated=True, as_name="another")) == []
        with other(lost, "guest", devices=f"<interface type='network'><source network='{ISOLATED}'/></interface>"):
            assert f"network {ISOLATED}" not in clear(lost, task), "somebody still uses it"
        task.ledger.write(record_of(plan, "run-3", "lost", "image", "night"))
        assert clear(lost, task) == [f"network {ISOLATED}"]
        assert lost.traces() == before
    finally:
        host.remove()


def test_isolated_vm_is_on_a_network_that_leads_nowhere_and_goes_with_it(lab_folder: Path) -> None:
    code = "import sys, pathlib, tests.lab.test_recovery_put as own; own._isolated(pathlib.Path(sys.argv[1]))"
    argv = [sys.executable, "-c", code, str(lab_folder / "apart")]
    root = Path(__file__).parents[2]
    child = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
