"""Faults in the window: no room, a refused commit, a host that hangs, a guest that is saved, renamed, resized."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.drivers import libvirt_host
from tasks.drivers.dead_man import armed
from tasks.drivers.journal import Journal
from tasks.drivers.libvirt_host import Host
from tasks.drivers.snaplive import Window
from tasks.drivers.snaplive_settle import close_window, reconcile
from tasks.drivers.space_watch import SpaceWatch
from tasks.drivers.ssh import Shell
from tasks.errors import GbsError, HypervisorError, LeftBehind, Unreachable
from tasks.model.domain_recovery import rewrite_for_recovery
from tasks.model.domain_whitelist import Wishes
from tasks.model.ssh_target import SshTarget
from tasks.model.window import Phase, Step
from tasks.model.window_decision import Action
from tests.lab.kvm_host import KvmHost
from tests.lab.snaplive_guest import Guests, assert_on_base, assert_sound, journal_of, opened, overlays, sources
from tests.lab.tiny_guest import last_record
from tests.lab.window_child import host_pid, reach

GOLDEN = Path(__file__).parents[1] / "unit" / "golden" / "domain"


def test_cdrom_and_shared_disks_are_left_out_with_a_warning(
    host: Host, shell: Shell, guests: Guests, folder: Path
) -> None:
    guest = guests()
    shared = f"/var/lib/libvirt/images/{guest.name}-shared.raw"
    guest.host.run(["truncate", "-s", "1M", shared])
    guest.host.virsh("attach-disk", guest.name, shared, "vdz", "--mode", "shareable", "--live", "--config")
    journal = journal_of(host, folder, guest)
    window = opened(host, shell, journal, guest)
    assert [disk.target for disk in window.disks] == ["vda"]
    assert [target for target, _ in window.left_out] == ["vdz"]
    assert any("vdz" in warning for warning in window.warnings)
    assert sources(guest)["vdz"] == shared
    close_window(host, shell, journal)
    assert sources(guest) == {"vda": guest.disks[0].path, "vdz": shared}


def test_commit_that_is_refused_leaves_the_vm_on_its_overlay_and_names_the_command(
    host: Host, shell: Shell, guests: Guests, folder: Path
) -> None:
    guest = guests()
    journal = journal_of(host, folder, guest)
    window = opened(host, shell, journal, guest)
    base = guest.outside(guest.disks[0].path)
    subprocess.run(["chattr", "+i", str(base)], check=True)  # ext4, XFS and btrfs have immutable files
    try:
        with pytest.raises(LeftBehind) as left:
            close_window(host, shell, journal)
    finally:
        subprocess.run(["chattr", "-i", str(base)], check=True)
    assert guest.host.virsh("domstate", guest.name).strip() == "running"
    assert sources(guest) == {"vda": window.disks[0].overlay}
    command = shlex.split(left.value.args[2])
    assert command[0] == "virsh"
    guest.host.run(command)
    assert [(o.action, o.settled) for o in reconcile(host, shell, journal)] == [(Action.TRASH, True)]
    assert_on_base(guest)
    assert_sound(guest)


def test_vm_saved_in_the_window_is_left_alone_until_it_runs_again(
    host: Host, shell: Shell, guests: Guests, folder: Path
) -> None:
    guest = guests()
    journal = journal_of(host, folder, guest)
    opened(host, shell, journal, guest)
    guest.host.virsh("managedsave", guest.name)
    outcomes = reconcile(host, shell, journal)
    assert [outcome.action for outcome in outcomes] == [Action.HANDS_OFF]
    assert "saved memory" in outcomes[0].reason
    guest.host.virsh("start", guest.name)
    assert all(outcome.settled for outcome in reconcile(host, shell, journal))
    assert_on_base(guest)
    assert_sound(guest)


def test_vm_renamed_and_resized_in_the_window_is_brought_back(
    host: Host, shell: Shell, guests: Guests, folder: Path
) -> None:
    guest = guests()
    journal = journal_of(host, folder, guest)
    opened(host, shell, journal, guest)
    guest.host.virsh("blockresize", guest.name, "vda", "96M")
    guest.host.virsh("destroy", guest.name)
    guest.host.virsh("domrename", guest.name, f"{guest.name}-new")
    guest.name += "-new"
    path = guest.host.images / Path(guest.disks[0].path.replace("-new", "")).name
    outcomes = reconcile(host, shell, journal)
    assert all(outcome.settled for outcome in outcomes)
    assert sources(guest, "--inactive") == {"vda": guest.disks[0].path.replace("-new", "")}
    argv = ["qemu-img", "info", "-f", "qcow2", "--output", "json", str(path)]
    assert json.loads(subprocess.check_output(argv))["virtual-size"] == 96 << 20
    assert last_record(path, "qcow2") > 0


def test_disk_removed_in_the_window_is_an_alert(host: Host, shell: Shell, guests: Guests, folder: Path) -> None:
    guest = guests(disk_count=2)
    journal = journal_of(host, folder, guest)
    opened(host, shell, journal, guest)
    guest.host.virsh("destroy", guest.name)
    guest.host.virsh("detach-disk", guest.name, "vdb", "--config")
    outcomes = reconcile(host, shell, journal)
    assert [(o.target, o.action, o.settled) for o in outcomes] == [
        ("vda", Action.UNLINK, True),
        ("vdb", Action.HANDS_OFF, False),
    ]
    assert len(overlays(guest)) == 1


@pytest.fixture
def small_folder(kvm_host: KvmHost) -> Iterator[str]:
    """A file system of 24 MiB inside the host, for images."""
    folder = "/var/lib/libvirt/images/small"
    kvm_host.run(["mkdir", "-p", folder])
    kvm_host.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=0711", "tmpfs", folder])
    yield folder
    kvm_host.run(["umount", "-l", folder])


def _watch(host: Host, shell: Shell, window: Window, min_free_bytes: int) -> SpaceWatch:
    folders = [disk.base.rpartition("/")[0] for disk in window.disks]
    plan = window.plan
    return SpaceWatch(host, shell, plan.vm, plan.uuid, folders, min_free_bytes=min_free_bytes, every_s=0)


def test_vm_stopped_by_a_full_overlay_goes_on_after_the_close(
    host: Host, shell: Shell, guests: Guests, folder: Path, small_folder: str
) -> None:
    guest = guests(disk_format="raw", size_bytes=16 << 20)
    old = guest.disks[0].path
    guest.host.virsh("destroy", guest.name)
    new = f"{small_folder}/{Path(old).name}"
    guest.host.run(["cp", "--sparse=never", old, new])
    xml = guest.host.virsh("dumpxml", "--inactive", guest.name).replace(old, new)
    assert "error_policy" not in xml, "QEMU stops at ENOSPC by itself"
    guest.host.virsh("define", "/dev/stdin", input_text=xml)
    guest.host.virsh("start", guest.name)
    journal = journal_of(host, folder, guest)
    window = opened(host, shell, journal, guest)
    _watch(host, shell, window, min_free_bytes=1 << 20)()
    with pytest.raises(HypervisorError, match="left on kvm1"):
        _watch(host, shell, window, min_free_bytes=1 << 30)()
    guest.host.run(["sh", "-c", f"cat /dev/zero >{small_folder}/filler 2>/dev/null; true"])
    end = time.monotonic() + 60
    while guest.host.virsh("domstate", guest.name, "--reason").strip() != "paused (I/O error)":
        assert time.monotonic() < end
        time.sleep(0.2)
    with pytest.raises(HypervisorError, match="I/O error"):
        _watch(host, shell, window, min_free_bytes=1)()
    outcomes = close_window(host, shell, journal)
    assert all(outcome.settled for outcome in outcomes)
    assert guest.host.virsh("domstate", guest.name).strip() == "running"
    assert sources(guest) == {"vda": new}
    time.sleep(1)
    guest.host.virsh("destroy", guest.name)
    guest.host.run(["cp", new, old])
    assert last_record(guest.outside(old), "raw") > 0, "a record is missing"


def test_libvirtd_that_hangs_is_noticed(
    kvm_target: SshTarget, kvm_host: KvmHost, shell: Shell, guests: Guests, folder: Path
) -> None:
    guest = guests()
    with libvirt_host.connect(kvm_target) as host:
        host.domain(guest.name)
        kvm_host.run(["sh", "-c", "kill -STOP $(cat /run/libvirtd.pid)"])
        try:
            began = time.monotonic()
            with pytest.raises(Unreachable):
                host.domain(guest.name)
            assert time.monotonic() - began < 45
        finally:
            kvm_host.run(["sh", "-c", "kill -CONT $(cat /run/libvirtd.pid)"])
    with libvirt_host.connect(kvm_target) as host:
        assert host.domain(guest.name).name == guest.name


def test_dead_mans_switch_resumes_a_vm_when_nobody_else_does(host: Host, shell: Shell, guests: Guests) -> None:
    guest = guests(writes=True)
    domain = host.domain(guest.name)
    with armed(shell, domain, "resume", 3):
        guest.host.virsh("suspend", guest.name)
        end = time.monotonic() + 30
        while guest.host.virsh("domstate", guest.name).strip() != "running":
            assert time.monotonic() < end
            time.sleep(0.2)
    with armed(shell, domain, "resume", 2):
        pass
    guest.host.virsh("suspend", guest.name)
    time.sleep(4)
    assert guest.host.virsh("domstate", guest.name).strip() == "paused", "the switch was not disarmed"


@pytest.mark.parametrize("case", ["plain", "lab", "hostile"])
def test_definition_rewritten_for_recovery_is_accepted_by_libvirt(kvm_host: KvmHost, case: str) -> None:
    text = (GOLDEN / f"{case}.in.xml").read_text()
    name = f"recovered-{case}"
    rewritten = rewrite_for_recovery(
        text,
        Wishes({"vda": "/var/lib/libvirt/images/x.qcow2"}, name=name, networks={}, keep_macs=False, domain_type="qemu"),
    )
    if case == "hostile":  # UEFI firmware is not installed on every machine
        rewritten = rewrite_for_recovery(
            text.replace(" firmware='efi'", "").replace("pflash", "rom").split("<loader")[0]
            + text.split("</nvram>")[1],
            Wishes(
                {"vda": "/var/lib/libvirt/images/x.qcow2"},
                name=name,
                networks={},
                domain_type="qemu",
            ),
        )
    kvm_host.virsh("define", "/dev/stdin", input_text=rewritten.xml)
    kvm_host.virsh("undefine", name)


def test_snapshot_that_libvirt_takes_after_its_asker_died_is_waited_for(
    kvm_host: KvmHost, guests: Guests, folder: Path
) -> None:
    guest = guests()
    pid = int(kvm_host.run(["cat", f"/run/libvirt/qemu/{guest.name}.pid"]).stdout)
    with reach(host_pid(kvm_host)) as (host, shell):
        journal = journal_of(host, folder, guest)

        class Stopping(Journal):
            def append(self, step: Step, phase: Phase = "done", *args, **more) -> None:
                super().append(step, phase, *args, **more)
                if (step, phase) == (Step.SNAPSHOT, "intent"):
                    kvm_host.run(["kill", "-STOP", str(pid)])

        def ask() -> None:
            # Its connection answers only when QEMU goes on; by then somebody else has reconciled.
            with contextlib.suppress(GbsError), reach(host_pid(kvm_host)) as (own_host, own_shell):
                opened(own_host, own_shell, Stopping(journal.path), guest)

        asker = threading.Thread(target=ask, daemon=True)
        asker.start()
        end = time.monotonic() + 30
        while not any(record.step is Step.SNAPSHOT for record in journal.records()):
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(1)
        copied = Journal(journal.path.with_name("copy.jsonl"))
        copied.path.write_bytes(journal.path.read_bytes())
        waker = threading.Timer(3, lambda: kvm_host.run(["kill", "-CONT", str(pid)]))
        waker.start()
        began = time.monotonic()
        outcomes = reconcile(host, shell, copied)
        waited_s = time.monotonic() - began
        asker.join(60)
    assert waited_s > 2
    assert [(outcome.action, outcome.settled) for outcome in outcomes] in (
        [(Action.UNLINK, True)],
        [(Action.TRASH, True)],
    ), "it looked before the snapshot was there"
    assert_on_base(guest)
