"""After a crash: unfinished snapshot windows are settled, VMs that run from the store go on, drills are taken away."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect import flow

from flows.drill import reconcile_drills
from flows.instant_vm import reconcile_instant
from flows.run_name import named
from flows.vm_name import VmName
from tasks import places, recovery, windows
from tasks.errors import GbsError, LeftBehind, Locked, WindowOpen, is_transient
from tasks.windows import DiskOutcome

log = logging.getLogger(__name__)


def require_settled(kvm_host: str, uuid: str) -> None:
    """Settle what an earlier run of the VM left; the VM's lock is held.

    Raises WindowOpen for a snapshot that an operator made and has not purged, LeftBehind for what needs an operator.
    """
    left = {plan.uuid: plan for _, plan in windows.open_windows()}
    if uuid not in left:
        return
    if left[uuid].run.startswith(windows.KVMSNAP):
        raise WindowOpen(left[uuid].vm, "this", "gbs-kvmsnap-create made a snapshot; gbs-kvmsnap-purge ends it")
    require_all(kvm_host, windows.settle(kvm_host, uuid))


def require_all(kvm_host: str, outcomes: list[DiskOutcome]) -> None:
    """Raise LeftBehind for the first disk that is not on its base."""
    for outcome in outcomes:
        log.info("VM %s disk %s: %s", outcome.vm, outcome.target, outcome.reason)
        if not outcome.settled:
            where = f"VM {outcome.vm}, disk {outcome.target}, overlay {outcome.overlay} on {kvm_host}"
            raise LeftBehind(where, outcome.reason, outcome.undo or "gbs reconcile")


@flow(name="reconcile", flow_run_name=named("vm", "reconcile {}", "all VMs"))
def reconcile(vm: VmName | None = None) -> list[DiskOutcome]:
    """Settle unfinished snapshot windows: commit, pivot, unlink as far as libvirt proves what may be done.

    A VM that runs from the store has its disks exported again where that ended, and goes on. What a drill that was
    interrupted left is taken away, a recovery that was cut off is told. A snapshot that an operator made is left alone,
    and so is a VM on which a run works now. Raises the first of what failed, once all were looked at.

    Args:
        vm: The VM, as libvirt names it. None means all.
    """
    outcomes: list[DiskOutcome] = []
    problems: list[GbsError] = []
    with _collecting(problems):
        for host, plan in windows.open_windows():
            if vm in (None, plan.vm, plan.uuid) and not plan.run.startswith(windows.KVMSNAP):
                with _collecting(problems), places.locked("vm", plan.uuid):
                    settled = windows.settle(host, plan.uuid)
                    outcomes += settled
                    require_all(host, settled)
    for part in (recovery.tell_interrupted, reconcile_instant, reconcile_drills):
        with _collecting(problems):
            part(vm)
    with _collecting(problems):
        recovery.require_readable()
    if problems:
        raise min(problems, key=is_transient)  # a host that is away may hide what needs an operator
    return outcomes


@contextmanager
def _collecting(problems: list[GbsError]) -> Iterator[None]:
    """What fails is told, and no reason to leave the rest as it is."""
    try:
        yield
    except Locked as exc:
        log.info("%s: a run works on it now", exc)
    except GbsError as exc:
        log.error("%s", exc)
        problems.append(exc)
