"""SIGKILL at every record of the journal, of our process, libvirtd, QEMU or the host: reconciling brings the VM back
and no guest write is lost. Judged by virsh, qemu-img and the guest's own log.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.drivers.journal import Journal, unfinished
from tasks.drivers.snaplive_settle import reconcile
from tasks.model.window_decision import Action
from tests.lab.kvm_host import KvmHost
from tests.lab.sshd import make_key
from tests.lab.tiny_guest import TinyGuest, last_record
from tests.lab.window_child import WRITTEN, ChildTask, host_pid, reach, run_child

# What a window of two disks writes, in order.
EXPECTED = [
    ("PREPARE", "done", ""),
    ("SNAPSHOT", "intent", ""),
    ("SNAPSHOT", "done", ""),
    ("SNAPSHOT", "done", "vda"),
    ("SNAPSHOT", "done", "vdb"),
    ("COPY", "intent", "vda"),
    ("COPY", "done", "vda"),
    ("COPY", "intent", "vdb"),
    ("COPY", "done", "vdb"),
    ("COMMIT", "intent", "vda"),
    ("COMMIT", "done", "vda"),
    ("COMMIT", "intent", "vdb"),
    ("COMMIT", "done", "vdb"),
    ("READY", "done", "vda"),
    ("READY", "done", "vdb"),
    ("PAUSE", "intent", ""),
    ("PIVOT", "intent", "vda"),
    ("PIVOTED", "done", "vda"),
    ("PIVOT", "intent", "vdb"),
    ("PIVOTED", "done", "vdb"),
    ("RESUME", "intent", ""),
    ("RESUME", "done", ""),
    ("UNLINK", "intent", "vda"),
    ("UNLINK", "intent", "vdb"),
    ("UNLINK", "done", "vda"),
    ("UNLINK", "done", "vdb"),
    ("DONE", "done", ""),
]
# Killed after an intent: nothing was done. Killed before a result: it was done, and nobody wrote that down.
KILL_AT = [(*record, "after") for record in EXPECTED] + [
    (*record, "before") for record in EXPECTED if record[1] == "done" and record[0] not in ("COPY", "PREPARE")
]
# Where the state of the VM is another one than at the step before.
STATES = [
    *[("SNAPSHOT", "intent", ""), ("SNAPSHOT", "done", ""), ("COMMIT", "intent", "vda"), ("COMMIT", "done", "vdb")],
    *[("READY", "done", "vdb"), ("PAUSE", "intent", ""), ("PIVOT", "intent", "vda"), ("PIVOTED", "done", "vda")],
    *[("PIVOT", "intent", "vdb"), ("PIVOTED", "done", "vdb"), ("RESUME", "done", ""), ("UNLINK", "done", "vda")],
]
_runs = itertools.count(1)


@pytest.fixture(scope="module")
def guest(kvm_host: KvmHost) -> Iterator[TinyGuest]:
    """A running guest that writes its log; its name and so its paths would hurt a shell that saw them bare."""
    guest = TinyGuest(kvm_host, "crash;a$(id)", disk_count=2)
    guest.start()
    yield guest
    guest.destroy()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal" / "kvm1" / "vm.jsonl")


def task(guest: TinyGuest, journal: Journal, **more) -> ChildTask:
    return ChildTask(host_pid(guest.host), guest.name, f"crash-{next(_runs)}", str(journal.path), **more)


def assert_on_base_and_running(guest: TinyGuest) -> None:
    """What virsh shows as sources, live and inactive, are the bases; the guest runs and writes on."""
    name = f'"{guest.name}"'
    # One virsh for all: it takes longer to start than to answer.
    shown = guest.host.virsh(f"domblklist {name}; domblklist {name} --inactive; domstate {name}").split()
    bases = [word for disk in guest.disks for word in (disk.target, disk.path)]
    assert shown == [*bases, *bases, "running"]
    assert not list(guest.host.images.glob(f"{glob_safe(guest)}*.gbs-*[0-9]")), "an overlay is still there"
    now = last_record(guest.outside(guest.disks[0].path), guest.disks[0].format)
    assert guest.wait_for_record(now + 8) > now


def glob_safe(guest: TinyGuest) -> str:
    return guest.name.replace("$", "[$]")


def trash(guest: TinyGuest) -> list[Path]:
    return list(guest.host.images.glob(f"{glob_safe(guest)}*.trash-*"))


def sweep(guest: TinyGuest) -> None:
    for path in [*trash(guest), *guest.host.images.glob(f"{glob_safe(guest)}*.copy")]:
        path.unlink()


def test_window_that_nobody_kills_writes_the_expected_journal(guest: TinyGuest, journal: Journal) -> None:
    done = run_child(task(guest, journal))
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in journal.done_path.read_text().splitlines()]
    assert [(r["step"], r.get("phase", "done"), r.get("target", "")) for r in records] == EXPECTED
    assert not journal.path.exists()
    copies = [last_record(guest.outside(f"{disk.path}.copy"), disk.format) for disk in guest.disks]
    assert copies[0] - copies[1] in (0, 1), "the copies are not from one instant"
    assert_on_base_and_running(guest)
    sweep(guest)


@pytest.mark.parametrize("kill_at", KILL_AT, ids=lambda kill_at: "-".join(filter(None, kill_at)))
def test_window_killed_at_a_record_is_reconciled(guest: TinyGuest, journal: Journal, kill_at) -> None:
    done = run_child(task(guest, journal, kill_at=kill_at))
    assert done.returncode == -9, done.stderr
    with reach(host_pid(guest.host)) as (host, shell):
        outcomes = reconcile(host, shell, journal)
        assert all(outcome.settled for outcome in outcomes), outcomes
        assert reconcile(host, shell, journal) == []
    assert unfinished(journal.path.parent.parent) == []
    assert_on_base_and_running(guest)
    sweep(guest)


def counters(guest: TinyGuest) -> list[int]:
    return [last_record(guest.outside(disk.path), disk.format) for disk in guest.disks]


def written_at_death(journal: Journal) -> int:
    """The last record that the guest had written, in an overlay or not, when its QEMU was dead."""
    return int(Path(f"{journal.path}{WRITTEN}").read_text())


def assert_nothing_lost(guest: TinyGuest, before: int) -> None:
    """A guest that is off has on both disks what it had written, of one instant; it starts and goes on."""
    assert guest.host.virsh("domstate", guest.name).strip() == "shut off"
    first, second = counters(guest)
    assert first >= before
    assert first - second in (0, 1), "a disk lost what the other one has"
    guest.host.virsh("start", guest.name)
    assert_on_base_and_running(guest)


@pytest.mark.parametrize("at", STATES, ids=lambda at: "-".join(filter(None, at)))
@pytest.mark.parametrize("victim", ["libvirtd", "qemu"])
def test_window_in_which_libvirtd_or_qemu_dies_is_reconciled(
    guest: TinyGuest, journal: Journal, victim: str, at: tuple[str, str, str]
) -> None:
    done = run_child(task(guest, journal, kill_at=(*at, "after"), victim=victim, folder=str(guest.host.images)))
    assert done.returncode in (0, 1), done.stderr
    if victim == "libvirtd":
        assert guest.host.run(["virsh", "version"], check=False).returncode != 0, "libvirtd was not killed"
        guest.host.restart_libvirtd()
    with reach(host_pid(guest.host)) as (host, shell):
        outcomes = reconcile(host, shell, journal)
    assert [outcome for outcome in outcomes if not outcome.settled] == []
    assert journal.open_window() is None
    if victim == "qemu":
        assert_nothing_lost(guest, written_at_death(journal))
    else:
        assert_on_base_and_running(guest)
    sweep(guest)


@pytest.mark.parametrize("step", ["COMMIT", "PIVOT", "PIVOTED", "UNLINK"])
def test_reconcile_killed_itself_is_run_again(guest: TinyGuest, journal: Journal, step) -> None:
    assert run_child(task(guest, journal, kill_at=("COPY", "done", "vda", "after"))).returncode == -9
    phase = "done" if step == "PIVOTED" else "intent"
    killed = run_child(task(guest, journal, verb="reconcile", kill_at=(step, phase, "vda", "after")))
    assert killed.returncode == -9, killed.stderr
    with reach(host_pid(guest.host)) as (host, shell):
        outcomes = reconcile(host, shell, journal)
    assert [outcome.action for outcome in outcomes if not outcome.settled] == []
    assert {outcome.action for outcome in outcomes} <= {Action.UNLINK, Action.TRASH}
    assert_on_base_and_running(guest)
    sweep(guest)


def test_vm_that_ran_on_and_died_with_one_of_two_disks_pivoted(guest: TinyGuest, journal: Journal) -> None:
    done = run_child(task(guest, journal, kill_at=("PIVOTED", "done", "vda", "after")))
    assert done.returncode == -9, done.stderr
    guest.host.virsh("resume", guest.name)
    written = guest.wait_for_record(last_record(guest.outside(guest.disks[0].path), "qcow2") + 60)
    guest.host.virsh("destroy", guest.name)
    inactive = guest.host.virsh("domblklist", guest.name, "--inactive")
    assert f"{guest.disks[0].path}\n" in inactive, "the definition names the base of the disk that has pivoted"
    assert f"{guest.disks[1].path}.gbs-" in inactive
    with reach(host_pid(guest.host)) as (host, shell):
        outcomes = reconcile(host, shell, journal)
    assert [(o.target, o.action, o.settled) for o in outcomes] == [
        ("vda", Action.UNLINK, True),
        ("vdb", Action.UNLINK, True),
    ]
    assert guest.host.virsh("domstate", guest.name).strip() == "shut off"
    assert_nothing_lost(guest, written)
    sweep(guest)


@pytest.fixture(scope="module")
def doomed(lab_folder: Path) -> Iterator[TinyGuest]:
    """A running guest on a host of its own, which may lose its power."""
    kvm_host = KvmHost("kvm2", lab_folder / "kvm2", make_key(lab_folder / "id_ed25519", "gbs tests"))
    kvm_host.start()
    guest = TinyGuest(kvm_host, "cut", disk_count=2)
    guest.start()
    guest.wait_for_record(20)
    yield guest
    kvm_host.remove()


@pytest.mark.parametrize("at", STATES, ids=lambda at: "-".join(filter(None, at)))
def test_host_that_loses_its_power_in_the_window_is_brought_back(
    doomed: TinyGuest, journal: Journal, at: tuple[str, str, str]
) -> None:
    folder = str(doomed.host.images)
    done = run_child(task(doomed, journal, kill_at=(*at, "after"), victim="everything", folder=folder))
    assert done.returncode == -9, done.stderr
    doomed.host.stop()
    doomed.host.start()
    with reach(host_pid(doomed.host)) as (host, shell):
        assert all(outcome.settled for outcome in reconcile(host, shell, journal))
    assert journal.open_window() is None
    assert_nothing_lost(doomed, written_at_death(journal))
    sweep(doomed)
