"""Stage 2 for all but restore points: images, templates, configurations and the GBS server's own recovery set."""

from collections.abc import Callable, Sequence
from functools import partial

from prefect import State, flow

from flows.ending import conclude
from flows.side_by_side import ALL, Begun, begin_each, results_of, task_runner
from flows.stage import stage
from tasks import places, replication
from tasks.errors import GbsError
from tasks.model.outcome import Outcome, StageResult
from tasks.replication import DEVICES, SERVER, Made, called_of


def replicate_vm(vm: str) -> list[StageResult]:
    """What there is of one VM, and its runbook; told of the client that it is, if one says so."""
    called = called_of("image", vm)
    results = _replicated(called, lambda: replication.replicate_images(vm))
    # Also when that failed: what stays is decided by the replicas that are there, and a full store must get room.
    results += _retained(called, lambda: _retain(vm))
    older = "the one in the permanent store is an older one, or none"
    return results + _aside(called, "runbook", older, lambda: replication.keep_runbook(vm))


def _retain(vm: str) -> None:
    with places.image_pins_turn(vm):
        replication.retain_images(vm)


def _aside(called: str, name: str, otherwise: str, work: Callable[[], object]) -> list[StageResult]:
    """Work that loses no image when it fails, or has no turn: a warning; nothing to tell when all is well."""
    with stage(called, name) as running:
        try:
            with places.locked("replica", called):
                work()
        except GbsError as exc:
            running.say(Outcome.WARNING, f"{otherwise}: {exc}")
    return [] if running.outcome is Outcome.OK else [running.result()]


def replicate_configurations(called: str) -> list[StageResult]:
    """The configurations of all devices."""
    return _replicated(called, replication.replicate_configurations)


def keep_server(called: str) -> list[StageResult]:
    """Gather what the GBS server is rebuilt from, and replicate it; what could not be gathered is a warning."""
    with stage(called, "recovery set") as running, places.locked("replica", called):
        gathered = replication.gather()
        running.produced = gathered.id
        for warning in gathered.warnings:
            running.say(Outcome.WARNING, warning)
    results = [running.result(), *_replicated(called, replication.replicate_recovery_sets)]
    return results + _retained(called, replication.retain_recovery_sets)


def retain_gone(called: str) -> list[StageResult]:
    """Retention of the images of VMs of which the store has nothing any more: what is left is looked at as any other's.

    A trash that is due is emptied, and a pin that is over ends.
    """
    vms = list[str]()
    results = _retained(called, lambda: vms.extend(replication.vms_gone()))
    for vm in vms:
        results += _retained(called_of("image", vm), partial(_retain, vm))
    return results


def _retained(called: str, retain: Callable[[], object]) -> list[StageResult]:
    return _aside(called, "retain replicas", "no replica was given up", retain)


def _replicated(called: str, replicate: Callable[[], Made]) -> list[StageResult]:
    with stage(called, "replicate") as running, places.locked("replica", called):
        made = replicate()
        running.bytes_moved = made.written_bytes
        running.produced = made.ids[-1] if made.ids else ""
        if not made.ids:
            running.say(Outcome.SKIPPED, "all of it is in the permanent store already")
    return [running.result()]


def begin_replicas(clients: Sequence[str] | None = None) -> Begun:
    """Begin what there is of all VMs, of devices and of the server; of the named clients, only their VMs."""
    declared = places.inventory()
    vms = [vm for vm in replication.vms() if clients is None or declared.vms.get(vm) in clients]
    begun = begin_each(replicate_vm, vms, "replicate images of {client}")
    if clients is None:
        begun |= begin_each(retain_gone, [ALL], "replicas of VMs that are gone")
        if declared.devices:
            begun |= begin_each(replicate_configurations, [DEVICES], "replicate {client}")
        if declared.server.recovery_set:
            begun |= begin_each(keep_server, [SERVER], "recovery set of {client}")
    return begun


@flow(name="replicate", flow_run_name="replicate all", task_runner=task_runner)
def replicate() -> State[list[StageResult]]:
    """Bring to the permanent store what it does not have of images, templates, configurations, the server's own set."""
    return conclude("replicate", results_of(begin_replicas()))
