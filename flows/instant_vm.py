"""Instant recovery: a VM runs from the store within a minute, and moves to its host while it runs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from prefect import flow

from flows.kvmimg_update import choose, update_image
from flows.recovery_run import Steps
from flows.vm_name import KvmHostName, VmName
from tasks import images, instant, places, recovery, recovery_assessment, updating
from tasks.errors import GbsError, IntegrityError, LeftBehind, Locked, RecoveredPartly, RecoveryRefused
from tasks.model.instant import Instant, InstantState, InstantVm, how_to_go_on, notes_of, on_overlays, warnings_of
from tasks.model.recovery import UpdatedImage
from tasks.model.recovery_plan import Order

log = logging.getLogger(__name__)
Action = Literal["start", "keep", "abandon"]


@flow(name="instant-vm", flow_run_name="instant recovery of {vm}: {action}")
def instant_vm(
    vm: VmName,
    action: Action = "start",
    night: str | None = None,
    to: KvmHostName | None = None,
    hold: bool = False,
) -> Instant:
    """Start a VM from its image in the store, move it to its KVM host while it runs; or take it away again.

    Killed at any point, it is run again and goes on: a VM that runs from the store has a record there.

    Args:
        vm: The VM, as libvirt names it.
        action: start (and move it, unless hold), keep (move one that runs from the store), abandon (remove it).
        night: latest, overnight, daily.N, an id or a date: bring a copy of the image up to it first, which takes its
            time. None starts the image as it is.
        to: The KVM host to start it on. None means the one that had it.
        hold: Let it run from the store until it is kept or abandoned.
    """
    steps = Steps()
    with _locked(vm) as found:
        record = _unless_cut_off(found) if found is not None and action != "abandon" else found
        if record is not None:
            if record.state is InstantState.MOVED:
                return _end_move(record, action, steps)
            if night is not None or to is not None:
                log.warning("VM %s runs from the store already: it stays where it is, as it is", record.vm)
            return _go_on(record, action, hold, steps)
    if action != "start":
        instant.require(vm)
    return _begin(vm, night, to, hold, steps)


@contextmanager
def _locked(vm: str) -> Iterator[InstantVm | None]:
    """The record of a VM that runs from the store, as it is with the VM's lock held; None when there is none."""
    found = instant.find(vm)
    if found is None:
        yield None
        return
    with places.locked("vm", found.uuid):
        yield instant.find(found.uuid)


def _unless_cut_off(record: InstantVm) -> InstantVm | None:
    """The record of a VM that may have run; None when its start was cut off before, which is undone.

    The VM's lock is held.
    """
    if record.state is not InstantState.STARTING or instant.is_known(record):
        return record
    _abandon(record)
    return None


def _go_on(record: InstantVm, action: Action, hold: bool, steps: Steps) -> Instant:
    if action == "abandon":
        with steps.step("abandon"):
            _abandon(record)
        return _result(record, "abandoned", steps)
    with steps.step("export its disks"):
        record = instant.serve(record)
        if action == "start" and record.state is InstantState.OFF:
            recovery_assessment.require_nowhere_else(record)  # it may have been off for days
            record = instant.start_again(record)
    return _result(record, "started", steps) if action == "start" and hold else _keep(record, steps)


def _begin(vm: str, night: str | None, to: str | None, hold: bool, steps: Steps) -> Instant:
    with steps.step("choose image"):
        sources = choose(vm, night) if night is not None else None
        original = sources or instant.choose(images.find(vm))
        order = Order(kvm_host=to or original.kvm_host)
        plan = on_overlays(recovery_assessment.plan(original, order), original.image.disks)
    with places.locked("vm", plan.identity.uuid):
        with steps.step("assess"):
            rewritten = recovery_assessment.assess_at_once(original, order, plan, recovery.new_run())
            record = instant.record_of(original, plan, rewritten)
        try:
            if sources is not None:
                with places.locked("client", sources.client), steps.step("update image with files"):
                    record = _from_copy(record, update_image(sources))
            with steps.step("start from the store"):
                if sources is not None:
                    recovery_assessment.require_nowhere_else(record)  # that was asked before the update, hours ago
                record = instant.start(record, plan.parts)
        except BaseException:
            if (left := instant.find(record.uuid)) is not None:
                _abandon(left)
            raise
        for note in (*notes_of(record), *warnings_of(record)):
            log.warning("VM %s: %s", record.vm, note)
        return _result(record, "started", steps) if hold else _keep(record, steps)


def _from_copy(record: InstantVm, updated: UpdatedImage) -> InstantVm:
    try:
        return instant.from_copy(record, updated)
    except BaseException:
        updating.remove(updated.folder)
        raise


def _keep(record: InstantVm, steps: Steps) -> Instant:
    with steps.step(f"move to {record.kvm_host}"):
        record, runs = instant.move(record)
    kept = _end_move(record, "keep", steps)
    off = (*kept.warnings, f"{record.vm} is shut off: virsh start")
    return kept if runs else kept.model_copy(update={"warnings": off})


def _end_move(record: InstantVm, action: Action, steps: Steps) -> Instant:
    """Read the image that a VM came from: there was no time for that before the start. Then nothing is left of it."""
    if action == "abandon":
        fix = f"it is its operator's: virsh undefine on {record.kvm_host}"
        raise RecoveryRefused(f"VM {record.vm}", "it has moved to its host and cannot be abandoned", fix)
    if record.working_copy is not None:
        updating.remove(record.working_copy)
    else:
        try:
            with steps.step("verify image"):
                instant.verify(record)
        except IntegrityError as exc:
            instant.forget(record)
            problem = f"{exc}; what it has of that image is in doubt"
            raise RecoveredPartly(record.vm, record.kvm_host, [problem]) from exc
    instant.forget(record)
    return _result(record, "kept", steps)


def _abandon(record: InstantVm) -> None:
    instant.abandon(record)
    if record.working_copy is not None:
        updating.remove(record.working_copy)
    instant.forget(record)


def reconcile_instant(vm: str | None) -> None:
    """Export again what VMs run from, resume them, undo a start that was cut off, go on with a move.

    A VM that is off stays in the store, also when its move had begun: its operator decides. LeftBehind for the first
    that needs an operator, once all were looked at.
    """
    problems: list[tuple[str, GbsError]] = []
    for record in instant.records():
        if vm not in (None, record.vm, record.uuid):
            continue
        try:
            with _locked(record.uuid) as found:
                left = _unless_cut_off(found) if found is not None else None
                if left is not None:
                    _reconcile(left)
        except Locked as exc:
            log.info("%s: a run works on it now", exc)
        except GbsError as exc:
            log.error("%s", exc)
            problems.append((record.vm, exc))
    for name, problem in problems:
        if isinstance(problem, LeftBehind | RecoveredPartly):
            raise problem
        undo = f"gbs reconcile, when that is put right; or lose what it wrote: gbs instant abandon {name}"
        raise LeftBehind(f"VM {name}, which runs from the store,", str(problem), undo) from problem


def _reconcile(record: InstantVm) -> None:
    """Go on with what was begun; a VM that is shut off is left as it is, which is said."""
    if record.state is InstantState.MOVED:
        _end_move(record, "keep", Steps())
        return
    record = instant.serve(record)
    if record.state is InstantState.MOVING:
        _keep(record, Steps())
    elif record.state is InstantState.OFF:
        log.warning("VM %s is shut off, and its disks are in the store: %s", record.vm, how_to_go_on(record.vm))


def _result(record: InstantVm, done: Literal["started", "kept", "abandoned"], steps: Steps) -> Instant:
    return Instant(
        vm=record.vm,
        uuid=record.uuid,
        kvm_host=record.kvm_host,
        ended=done != "started",
        done=done,
        image=record.image,
        night=record.night,
        disks=tuple(disk.overlay for disk in record.disks),
        notes=notes_of(record) if done != "abandoned" else (),
        warnings=warnings_of(record) if done != "abandoned" else (),
        steps=tuple(steps.taken),
    )
