"""Drills: a VM is recovered on a network that leads nowhere, proves itself, and is taken away again."""

import logging

from prefect import State, flow

from flows.ending import conclude
from flows.kvmimg_update import choose
from flows.recovery_run import RecoveryRun, begin, planned, put, serve
from flows.run_name import named
from flows.stage import stage
from flows.vm_name import KvmHostName, VmName
from tasks import drill as drilling
from tasks import places, recovery
from tasks.errors import DrillFailed, GbsError, GuestAgentError, LeftBehind, Locked, UnknownName, Unreachable
from tasks.model.assessment import BOOT
from tasks.model.domain_xml import parse_domain
from tasks.model.drill import PICTURE, PREFIX, Drilled, UnfinishedDrill
from tasks.model.names import new_id
from tasks.model.outcome import Outcome, StageResult
from tasks.model.recovery_plan import Order, Plan
from tasks.model.recovery_record import record_name

log = logging.getLogger(__name__)


@flow(name="drill", flow_run_name=named("vms", "drill of {}", "the VMs whose turn it is"))
def drill(
    vms: list[VmName] | None = None, night: str = "latest", to: KvmHostName | None = None, everyone: bool = False
) -> State[list[StageResult]]:
    """Recover VMs where they disturb nobody, one after the other, prove them, and take them away again.

    Args:
        vms: The VMs. None means those whose turn it is: each once in its policy's drill_days.
        night: latest, overnight, daily.N, an id, or a date (YYYY-MM-DD).
        to: The KVM host to drill them on. None means the one that each is on.
        everyone: All VMs of the inventory.
    """
    names = [*places.inventory().vms] if everyone else vms if vms is not None else drilling.vms_due()
    for name in names:
        places.client_of_vm(name)  # before anything is done
    return conclude("drill", [drill_vm(vm, night, to) for vm in names])


class _Drill:
    """A drill of a VM; `run` is None until it is known what it would be recovered from."""

    def __init__(self, vm: str, client: str, kvm_host: str) -> None:
        self.vm, self.client, self.kvm_host = vm, client, kvm_host
        self.run: RecoveryRun | None = None
        self.shown, self.unseen = b"", "it did not come to that"

    def record(self, result: StageResult) -> Drilled:
        """The manifest of it."""
        told = Drilled(
            id=new_id(result.started),
            vm=self.vm,
            client=self.client,
            kvm_host=self.kvm_host,
            started=result.started,
            ended=result.ended,
            outcome=result.outcome,
            reasons=result.reasons,
            screenshot=PICTURE if self.shown else "",
            unseen=self.unseen,
        )
        if (run := self.run) is None:
            return told
        known = {
            "kvm_host": run.plan.kvm_host,
            "image": run.image or run.sources.image.id,
            "night": run.sources.night.id,
            "night_ended": run.sources.night.ended,
            "steps": tuple(run.steps.taken),
            "databases": tuple(run.databases),
            "probes": tuple(run.probes),
            "dropped": run.dropped,
        }
        return told.model_copy(update=known)


def drill_vm(vm: str, night: str, to: str | None) -> StageResult:
    """Drill one VM: whatever happens is kept as what its drill showed."""
    client, _ = places.client_of_vm(vm)
    drilled = _Drill(vm, client, to or "")
    with stage(client, "drill") as running:
        try:
            _drill(drilled, night)
        except Locked as exc:
            running.say(Outcome.MISSED, str(exc))
        if running.outcome is Outcome.OK and drilled.run and not (drilled.run.probes or drilled.run.databases):
            running.say(Outcome.WARNING, "it booted, and nothing more was asked of it: declare probes for its client")
    for warning in drilled.run.warnings if drilled.run else ():
        # It is the newest image that is to be proven. What a good one boots without is only to be known.
        running.say(Outcome.WARNING if drilled.run and drilled.run.instead_of else Outcome.OK, warning)
    kept = drilled.record(running.result())
    with stage(client, "drill") as keeping:
        drilling.keep(kept, drilled.shown)
        running.produced = kept.id
    for reason in keeping.reasons:
        running.say(keeping.outcome, reason)
    return running.result()


def _drill(drilled: _Drill, night: str) -> None:
    with places.locked("client", drilled.client):
        sources = choose(drilled.vm, night)
        if not parse_domain(sources.xml).guest_agent:
            reason = "the VM has no channel of a guest agent, which alone could be asked"
            raise GuestAgentError(drilled.vm, "drill", reason)
        order = Order(kvm_host=drilled.kvm_host or sources.kvm_host, as_name=f"{PREFIX}{sources.vm}", isolated=True)
        run = drilled.run = planned(sources, order)
        with places.locked("vm", run.plan.identity.uuid):
            _clear(run.plan)
            rewritten = begin(run)
            try:
                put(run, rewritten)
                _prove(drilled, run)
            finally:
                recovery.undo(run.plan)
    if run.problems:
        raise DrillFailed(drilled.vm, run.problems)


def _prove(drilled: _Drill, run: RecoveryRun) -> None:
    """The guest answers, its databases load, its probes hold; its console is looked at, above all when they do not."""
    client = places.client(run.sources.client)
    try:
        with run.steps.step(BOOT):
            recovery.wait_for_agent(run.plan, True, client.boot_deadline_s)
        serve(
            run,
            lambda called, dumps: drilling.restore_databases(run.plan, run.sources.client, called, dumps),
            client.probes,
            lambda probe: drilling.probe(run.plan, run.sources.client, probe),
        )
    finally:
        drilled.shown, drilled.unseen = drilling.picture(run.plan)


def _clear(plan: Plan) -> None:
    """Remove what earlier drills of the VM left, on any KVM host; its lock is held."""
    for left in drilling.unfinished():
        if left.uuid == plan.identity.uuid:
            try:
                drilling.clear(left)
            except (Unreachable, UnknownName) as exc:  # it may be in the inventory no more
                if left.kvm_host == plan.kvm_host:
                    raise
                # It is this drill that holds the lock by which one is known to run.
                log.warning("%s: %s", left.model_copy(update={"runs": False}).line, exc)


def reconcile_drills(vm: str | None) -> None:
    """Remove what interrupted drills left; LeftBehind for the first that stays, once all were looked at."""
    problems: list[tuple[UnfinishedDrill, GbsError]] = []
    for left in drilling.unfinished():
        if vm not in (None, left.vm):
            continue
        try:
            with places.locked("vm", left.uuid):
                # Its own run may have ended it meanwhile.
                for still in (each for each in drilling.unfinished() if each.uuid == left.uuid):
                    drilling.clear(still)
        except Locked as exc:
            log.info("%s: a drill runs now", exc)
        except GbsError as exc:
            log.error("%s", exc)
            problems.append((left, exc))
    for left, problem in problems:
        undo = "gbs reconcile, when that is put right"
        if isinstance(problem, UnknownName):
            record = f"recovery/.put/{record_name(left.kvm_host, left.uuid)}"
            undo += f"; of a host that is gone for good: remove {record} from the store"
        raise LeftBehind(f"{left.name} on {left.kvm_host}", str(problem), undo)
