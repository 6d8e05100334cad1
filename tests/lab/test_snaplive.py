"""SnapLive on real guests: a window changes nothing, and whatever happens in it, no guest write is lost."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tasks.drivers import libvirt_host
from tasks.drivers.journal import read_records
from tasks.drivers.libvirt_host import Host
from tasks.drivers.snaplive import open_window
from tasks.drivers.snaplive_scan import scan
from tasks.drivers.snaplive_settle import close_window, reconcile
from tasks.drivers.ssh import Shell
from tasks.errors import (
    AccessDenied,
    DomainBusy,
    HypervisorError,
    LeftBehind,
    StoreFull,
    UnknownName,
    Unreachable,
    WindowOpen,
)
from tasks.model.ssh_target import SshTarget
from tasks.model.window import Step
from tasks.model.window_decision import Action
from tests.lab.kvm_host import KvmHost
from tests.lab.snaplive_guest import Guests, assert_on_base, assert_sound, journal_of, opened, overlays, sources
from tests.lab.tiny_guest import last_record


@pytest.mark.parametrize("disk_format", ["qcow2", "raw"])
def test_window_keeps_the_bases_still_and_loses_no_write(
    host: Host, shell: Shell, guests: Guests, folder: Path, disk_format: str
) -> None:
    guest = guests(disk_count=2, disk_format=disk_format)
    journal = journal_of(host, folder, guest)
    window = opened(host, shell, journal, guest)
    assert window.consistency == "crash"
    assert "no guest agent" in window.consistency_reason
    assert window.frozen_s == 0
    first = [last_record(guest.outside(disk.path), disk.format) for disk in guest.disks]
    time.sleep(1)
    assert [last_record(guest.outside(disk.path), disk.format) for disk in guest.disks] == first
    assert first[0] - first[1] in (0, 1), "the disks are not from one instant"
    assert len(overlays(guest)) == 2
    with pytest.raises(WindowOpen, match="gbs reconcile"):
        opened(host, shell, journal, guest)
    seen: list[tuple[int, ...]] = []
    began = time.monotonic()
    outcomes = close_window(host, shell, journal, on_progress=lambda _, *done: seen.append(done))
    print(f"close_window took {time.monotonic() - began:.2f} s")
    assert [(outcome.action, outcome.settled) for outcome in outcomes] == [(Action.UNLINK, True)] * 2
    assert seen
    assert all(done <= total for done, total in seen)
    assert_on_base(guest)
    assert overlays(guest) == []
    assert guest.wait_for_record(first[0] + 50) > first[0]
    assert close_window(host, shell, journal) == []
    assert_sound(guest)


def test_window_lasts_as_long_as_the_copy_and_less_than_two_seconds_more(
    host: Host, shell: Shell, guests: Guests, folder: Path
) -> None:
    guest = guests(disk_count=2)
    journal = journal_of(host, folder, guest)
    beyond_s, paused_s = [], []
    for _ in range(3):
        window = opened(host, shell, journal, guest)
        copy_began = time.time()
        time.sleep(0.5)
        copied_s = time.time() - copy_began
        close_window(host, shell, journal)
        at = {(record.step, record.phase): record.at for record in read_records(journal.done_path)}
        beyond_s.append((at[Step.PIVOTED, "done"] - window.instant).total_seconds() - copied_s)
        paused_s.append((at[Step.RESUME, "done"] - at[Step.PAUSE, "intent"]).total_seconds())
    print("beyond the copy", beyond_s, "paused", paused_s)
    assert min(beyond_s) < 2
    assert min(paused_s) < 1
    assert_sound(guest)


def test_vm_that_was_shut_off_in_the_window_is_committed_offline_and_not_started(
    host: Host, shell: Shell, guests: Guests, folder: Path
) -> None:
    guest = guests(disk_count=2, disk_format="raw")
    journal = journal_of(host, folder, guest)
    opened(host, shell, journal, guest)
    before = last_record(guest.outside(guest.disks[0].path), "raw")
    time.sleep(1)
    guest.host.virsh("destroy", guest.name)
    outcomes = close_window(host, shell, journal)
    assert all(outcome.settled for outcome in outcomes)
    assert_on_base(guest, "shut off")
    assert overlays(guest) == []
    assert last_record(guest.outside(guest.disks[0].path), "raw") > before + 10, "the writes of the window are missing"
    assert_sound(guest)


def test_vm_that_was_undefined_in_the_window_is_left_alone(
    host: Host, shell: Shell, guests: Guests, folder: Path
) -> None:
    guest = guests()
    journal = journal_of(host, folder, guest)
    opened(host, shell, journal, guest)
    guest.host.virsh("destroy", guest.name)
    guest.host.virsh("undefine", guest.name)
    kept = overlays(guest)
    outcomes = reconcile(host, shell, journal)
    assert [(outcome.action, outcome.settled) for outcome in outcomes] == [(Action.HANDS_OFF, False)]
    assert overlays(guest) == kept
    assert journal.open_window() is not None
    guest.host.virsh("define", "/dev/stdin", input_text=guest.domain_xml())
    assert [o.action for o in reconcile(host, shell, journal)] == [Action.HANDS_OFF], "the same name is not the same VM"


def test_overlay_that_is_missing_raises_an_alert_and_nothing_is_done(
    host: Host, shell: Shell, guests: Guests, folder: Path
) -> None:
    guest = guests()
    journal = journal_of(host, folder, guest)
    window = opened(host, shell, journal, guest)
    guest.host.virsh("destroy", guest.name)
    overlay = guest.outside(window.disks[0].overlay)
    hidden = overlay.with_name(f"{guest.name}-hidden")
    overlay.rename(hidden)
    with pytest.raises(LeftBehind, match="do not start"):
        close_window(host, shell, journal)
    assert sources(guest, "--inactive") == {"vda": window.disks[0].overlay}
    hidden.rename(overlay)
    assert all(outcome.settled for outcome in reconcile(host, shell, journal))
    assert_on_base(guest, "shut off")


def test_overlay_that_was_exchanged_is_not_committed(host: Host, shell: Shell, guests: Guests, folder: Path) -> None:
    guest = guests()
    journal = journal_of(host, folder, guest)
    window = opened(host, shell, journal, guest)
    guest.host.virsh("destroy", guest.name)
    overlay = guest.outside(window.disks[0].overlay)
    overlay.unlink()
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", str(overlay), "64M"]
    subprocess.run(argv, check=True)
    base = guest.outside(guest.disks[0].path).read_bytes()
    outcomes = reconcile(host, shell, journal)
    assert [outcome.action for outcome in outcomes] == [Action.HANDS_OFF]
    assert "not the one" in outcomes[0].reason
    assert guest.outside(guest.disks[0].path).read_bytes() == base
    assert overlay.exists()


def test_foreign_overlay_above_ours_is_left_alone(host: Host, shell: Shell, guests: Guests, folder: Path) -> None:
    guest = guests()
    journal = journal_of(host, folder, guest)
    opened(host, shell, journal, guest)
    path = f"/var/lib/libvirt/images/{guest.name}-foreign"
    disk = f"vda,file={path}"
    guest.host.virsh("snapshot-create-as", guest.name, "x", "--disk-only", "--no-metadata", "--diskspec", disk)
    outcomes = reconcile(host, shell, journal)
    assert [outcome.action for outcome in outcomes] == [Action.HANDS_OFF]
    assert sources(guest) == {"vda": path}
    guest.host.virsh("blockcommit", guest.name, "vda", "--active", "--pivot", "--shallow", "--wait")
    assert all(outcome.settled for outcome in reconcile(host, shell, journal))
    assert_on_base(guest)
    assert_sound(guest)


def test_commit_of_an_operator_is_adopted_and_an_operators_pivot_is_believed(
    host: Host, shell: Shell, guests: Guests, folder: Path
) -> None:
    guest = guests(disk_count=2)
    journal = journal_of(host, folder, guest)
    opened(host, shell, journal, guest)
    guest.host.virsh("blockcommit", guest.name, "vda", "--active", "--pivot", "--wait")
    guest.host.virsh("blockcommit", guest.name, "vdb", "--active")
    outcomes = reconcile(host, shell, journal)
    assert [(o.target, o.action, o.settled) for o in outcomes] == [
        ("vda", Action.TRASH, True),
        ("vdb", Action.UNLINK, True),
    ]
    assert [name for name in overlays(guest) if ".trash-" not in name] == []
    assert len(overlays(guest)) == 1
    assert_on_base(guest)
    assert_sound(guest)


def test_libvirtd_killed_in_the_window_is_unreachable_and_then_reconciled(
    kvm_target: SshTarget, kvm_host: KvmHost, shell: Shell, guests: Guests, folder: Path
) -> None:
    guest = guests(disk_count=2)
    with libvirt_host.connect(kvm_target) as host:
        journal = journal_of(host, folder, guest)
        opened(host, shell, journal, guest)
        kvm_host.virsh("blockcommit", guest.name, "vda", "--active")
        kvm_host.kill_libvirtd()
        try:
            with pytest.raises(Unreachable):
                close_window(host, shell, journal)
        finally:
            kvm_host.restart_libvirtd()
    with libvirt_host.connect(kvm_target) as host:
        assert all(outcome.settled for outcome in reconcile(host, shell, journal))
    assert_on_base(guest)
    assert_sound(guest)


def test_vm_that_was_paused_by_its_operator_stays_paused(
    host: Host, shell: Shell, guests: Guests, folder: Path
) -> None:
    guest = guests()
    guest.host.virsh("suspend", guest.name)
    journal = journal_of(host, folder, guest)
    opened(host, shell, journal, guest)
    close_window(host, shell, journal)
    assert_on_base(guest, "paused")


def test_paused_guest_that_we_left_goes_on_first(host: Host, shell: Shell, guests: Guests, folder: Path) -> None:
    guest = guests()
    journal = journal_of(host, folder, guest)
    opened(host, shell, journal, guest)
    journal.append(Step.PAUSE, "intent")
    guest.host.virsh("suspend", guest.name)
    assert all(outcome.settled for outcome in reconcile(host, shell, journal))
    assert_on_base(guest)


def test_snapshot_that_fails_leaves_the_vm_on_its_base_and_no_journal(
    host: Host, shell: Shell, guests: Guests, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = guests(disk_count=2)
    journal = journal_of(host, folder, guest)
    monkeypatch.setattr("tasks.drivers.snaplive.render_snapshot", lambda plan, left_out: "<domainsnapshot><disks>no")
    with pytest.raises(HypervisorError, match="snapshot"):
        opened(host, shell, journal, guest)
    assert journal.open_window() is None
    assert_on_base(guest)


def test_too_little_room_for_overlays_is_said_before_anything_is_done(
    host: Host, shell: Shell, guests: Guests, folder: Path
) -> None:
    guest = guests()
    journal = journal_of(host, folder, guest)
    with pytest.raises(StoreFull):
        opened(host, shell, journal, guest, min_free_bytes=1 << 60)
    assert not journal.path.exists()
    assert overlays(guest) == []


def test_job_of_somebody_else_is_waited_for(host: Host, shell: Shell, guests: Guests, folder: Path) -> None:
    guest = guests()
    target = f"/var/lib/libvirt/images/{guest.name}-copied"
    guest.host.virsh("blockcopy", guest.name, "vda", target, "--transient-job")
    with pytest.raises(DomainBusy, match="block job"):
        opened(host, shell, journal_of(host, folder, guest), guest)
    guest.host.virsh("blockjob", guest.name, "vda", "--abort")


def test_snapshot_of_somebody_else_stays_as_it_is(host: Host, shell: Shell, guests: Guests, folder: Path) -> None:
    guest = guests()
    disk = f"vda,file=/var/lib/libvirt/images/{guest.name}-foreign"
    guest.host.virsh("snapshot-create-as", guest.name, "x", "--disk-only", "--no-metadata", "--diskspec", disk)
    before = sources(guest), sources(guest, "--inactive")
    journal = journal_of(host, folder, guest)
    (planned,) = opened(host, shell, journal, guest).disks
    assert [layer.path.rpartition("/")[2] for layer in planned.layers] == [
        f"{guest.name}-foreign",
        f"{guest.name}-vda.qcow2",
    ]
    close_window(host, shell, journal)
    assert (sources(guest), sources(guest, "--inactive")) == before


def test_vm_that_is_shut_off_or_unknown_is_refused(host: Host, shell: Shell, guests: Guests, folder: Path) -> None:
    guest = guests()
    journal = journal_of(host, folder, guest)
    guest.host.virsh("destroy", guest.name)
    with pytest.raises(HypervisorError, match="does not run"):
        opened(host, shell, journal, guest)
    with pytest.raises(UnknownName, match="no VM named 'no such VM': known are "):
        open_window(host, shell, journal, "no such VM", "run-1")


def test_scan_finds_overlays_that_no_journal_knows(host: Host, shell: Shell, guests: Guests, folder: Path) -> None:
    guest = guests()
    journal = journal_of(host, folder, guest)
    window = opened(host, shell, journal, guest)
    assert [stray for stray in scan(host, folder) if stray.vm == guest.name] == []
    found = [stray for stray in scan(host, folder / "other") if stray.vm == guest.name]
    assert [(stray.target, stray.overlay, stray.run) for stray in found] == [("vda", window.disks[0].overlay, "run-1")]
    lost = journal.path.rename(journal.path.with_name("elsewhere"))
    with pytest.raises(WindowOpen, match="on the overlay of run run-1"):
        opened(host, shell, journal, guest)
    lost.rename(journal.path)
    close_window(host, shell, journal)


def test_wrong_host_key_is_refused(kvm_target: SshTarget, tmp_path: Path) -> None:
    key = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    kind, blob = key.with_suffix(".pub").read_text().split()[:2]
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{kvm_target.port} {kind} {blob}\n")
    for content in (known_hosts.read_text(), ""):
        known_hosts.write_text(content)
        changed = SshTarget("kvm1", "127.0.0.1", "root", kvm_target.port, kvm_target.private_key_file, known_hosts)
        with pytest.raises(AccessDenied, match="known_hosts"), libvirt_host.connect(changed):
            pass


def test_host_that_does_not_answer_is_unreachable(kvm_target: SshTarget) -> None:
    closed = SshTarget("kvm1", "127.0.0.1", "root", 1, kvm_target.private_key_file, kvm_target.known_hosts_file)
    with pytest.raises(Unreachable), libvirt_host.connect(closed):
        pass
