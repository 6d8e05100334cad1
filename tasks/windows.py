"""Snapshot windows on their own: made for another tool's copy, purged, reconciled after a crash."""

import logging
from pathlib import Path

from tasks import places
from tasks.drivers.journal import unfinished
from tasks.drivers.progress import reporting
from tasks.drivers.snaplive import Window, open_window
from tasks.drivers.snaplive_evidence import look
from tasks.drivers.snaplive_settle import DiskOutcome, close_window, reconcile
from tasks.model.window import WindowPlan
from tasks.model.window_decision import Power
from tasks.retryable import retryable

log = logging.getLogger(__name__)
__all__ = ["KVMSNAP", "DiskOutcome", "Window", "create", "open_windows", "power", "purge", "settle"]

KVMSNAP = "kvmsnap-"
"""How the run ids of snapshots begin that an operator made: they stay until they are purged."""


@retryable("power of VM", "power of {uuid}")
def power(kvm_host: str, uuid: str) -> Power:
    """Whether the KVM host runs the VM now, has it shut off, or does not know it."""
    with places.hypervisor(kvm_host) as (host, _):
        return look(host, uuid, others=False).power


@retryable("create snapshot", "snapshot {uuid}", retries=1)
def create(kvm_host: str, uuid: str, run_id: str) -> Window:
    """Put the running VM on overlays, so that its disks lie still until the snapshot is purged."""
    journal, (_, block) = places.journal(kvm_host, uuid), places.kvm_host(kvm_host)
    with places.hypervisor(kvm_host) as (host, shell):
        return open_window(host, shell, journal, uuid, f"{KVMSNAP}{run_id}", image_folder=block.image_folder)


@retryable("purge snapshot", "purge snapshot of {uuid}", retries=1)
def purge(kvm_host: str, uuid: str) -> list[DiskOutcome]:
    """Commit, pivot and remove the overlays of the VM's open window; LeftBehind when a disk cannot be brought back."""
    with places.hypervisor(kvm_host) as (host, shell), reporting(log, f"commit {uuid}") as progress:
        journal = places.journal(kvm_host, uuid)
        return close_window(host, shell, journal, on_progress=lambda _target, *done: progress.update(*done))


@retryable("reconcile", "reconcile {uuid}", retries=1)
def settle(kvm_host: str, uuid: str) -> list[DiskOutcome]:
    """Settle an unfinished window as far as libvirt's XML proves what may be done; [] when there is none."""
    with places.hypervisor(kvm_host) as (host, shell), reporting(log, f"reconcile {uuid}") as progress:
        journal = places.journal(kvm_host, uuid)
        return reconcile(host, shell, journal, on_progress=lambda _target, *done: progress.update(*done))


def open_windows() -> list[tuple[str, WindowPlan]]:
    """The unfinished windows in the store: the KVM host's name and the plan of each."""
    found = []
    for host in places.inventory().kvm_hosts:
        for path in unfinished(places.store().journal, host):
            plan = _plan_of(host, path)
            if plan is not None:
                found.append((host, plan))
    return found


def _plan_of(host: str, path: Path) -> WindowPlan | None:
    window = places.journal(host, path.stem).open_window()
    return window.plan if window else None
