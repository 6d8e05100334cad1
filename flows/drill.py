"""Drills: a VM is recovered on a network that leads nowhere, proves itself, and is taken away again."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from prefect import State, flow

from flows.ending import conclude
from flows.kvmimg_update import choose, update_image
from flows.run_name import named
from flows.stage import stage
from flows.vm_name import KvmHostName, VmName
from tasks import drill as drilling
from tasks import places, recovery, recovery_assessment, updating
from tasks.errors import DrillFailed, GbsError, GuestAgentError, RecoveryRefused
from tasks.model.assessment import BOOT, DEFINE, PROBE, RESTORE, SEND, UPDATE
from tasks.model.domain_recovery import Rewritten
from tasks.model.domain_xml import parse_domain
from tasks.model.drill import PICTURE, Drilled
from tasks.model.names import new_id
from tasks.model.outcome import Outcome, StageResult
from tasks.model.recovery import Sources, Step, UpdatedImage
from tasks.model.recovery_plan import Order, Plan

log = logging.getLogger(__name__)
PREFIX = "gbs-drill-"
"""Before the VM's name: what a drill is called on the KVM host."""


@dataclass
class _Drill:
    """A drill under way."""

    vm: str
    client: str
    kvm_host: str
    sources: Sources | None = None
    plan: Plan | None = None
    steps: list[Step] = field(default_factory=list)
    databases: list[str] = field(default_factory=list)
    probes: list[str] = field(default_factory=list)
    dropped: tuple[str, ...] = ()
    shown: bytes = b""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step."""
        began = time.monotonic()
        yield
        self.steps.append(Step(name=name, seconds=time.monotonic() - began))

    def record(self, result: StageResult) -> Drilled:
        """The manifest of it."""
        return Drilled(
            id=new_id(result.started),
            vm=self.vm,
            client=self.client,
            kvm_host=self.kvm_host,
            image=self.sources.image.id if self.sources else "",
            night=self.sources.night.id if self.sources else "",
            night_ended=self.sources.night.ended if self.sources else None,
            started=result.started,
            ended=result.ended,
            outcome=result.outcome,
            reasons=result.reasons,
            steps=tuple(self.steps),
            databases=tuple(self.databases),
            probes=tuple(self.probes),
            dropped=self.dropped,
            screenshot=PICTURE if self.shown else "",
        )


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
    return conclude("drill", [drill_vm(vm, night, to) for vm in names])


def drill_vm(vm: str, night: str, to: str | None) -> StageResult:
    """Drill one VM: whatever happens is kept as what its drill showed."""
    client, _ = places.client_of_vm(vm)
    run = _Drill(vm, client, to or "")
    with stage(client, "drill") as running:
        _drill(run, night)
        if not (run.probes or run.databases):
            running.say(Outcome.WARNING, "it booted; nothing else was asked of it: declare probes for its client")
    kept = run.record(running.result())
    with stage(client, "drill") as keeping:
        drilling.keep(kept, run.shown)
        running.produced = kept.id
    for reason in keeping.reasons:
        running.say(keeping.outcome, reason)
    return running.result()


def _drill(run: _Drill, night: str) -> None:
    with places.locked("client", run.client):
        sources = run.sources = choose(run.vm, night)
        run.kvm_host = run.kvm_host or sources.kvm_host
        order = Order(kvm_host=run.kvm_host, as_name=f"{PREFIX}{sources.vm}", isolated=True)
        plan = run.plan = recovery_assessment.plan(sources, order)
        if not parse_domain(sources.xml).guest_agent:
            raise GuestAgentError(
                run.vm, "drill", "the VM has no channel of a guest agent, which alone could be asked"
            )
        with places.locked("vm", plan.identity.uuid):
            drilling.clear(plan)
            rewritten = _begin(sources, order, plan)
            run.dropped = rewritten.dropped
            try:
                with run.step(UPDATE):
                    updated = update_image(sources)
                try:
                    recovery.note_working_copy(plan, updated)
                    _start(run, sources, plan, updated, rewritten)
                finally:
                    updating.remove(updated.folder)
                _prove(run, sources, plan)
            finally:
                recovery.undo(plan)


def _begin(sources: Sources, order: Order, plan: Plan) -> Rewritten:
    run_id = recovery.new_run()
    assessment, rewritten = recovery_assessment.assess(sources, order, plan, run_id)
    if assessment.refusals:
        reason = "; ".join(finding.reason for finding in assessment.refusals)
        raise RecoveryRefused(f"drill of {sources.vm}", reason, assessment.refusals[0].fix)
    recovery.begin(sources, plan, run_id)
    return rewritten


def _start(run: _Drill, sources: Sources, plan: Plan, updated: UpdatedImage, rewritten: Rewritten) -> None:
    with run.step(SEND):
        for place in plan.disks:
            recovery.send_disk(updated, place, plan)
        for place in plan.parts:
            recovery.send_part(sources, place, plan)
    with run.step(DEFINE):
        recovery.start(sources, plan, rewritten)


def _prove(run: _Drill, sources: Sources, plan: Plan) -> None:
    """The guest answers, its databases load, its probes hold; its console is looked at, above all when they do not."""
    _, client = places.client_of_vm(run.vm)
    try:
        with run.step(BOOT):
            recovery.wait_for_agent(plan, True, client.boot_deadline_s)
        problems: list[str] = []
        with run.step(RESTORE):
            run.databases += _restored(plan, sources, problems)
        with run.step(PROBE):
            run.probes += _held(run, plan, problems)
    finally:
        run.shown = drilling.picture(plan)
    if problems:
        raise DrillFailed(run.vm, problems)


def _restored(plan: Plan, sources: Sources, problems: list[str]) -> Sequence[str]:
    restored: list[str] = []
    for called in dict.fromkeys(dump.called for dump in sources.night.dumps):
        dumps = [dump for dump in sources.night.dumps if dump.called == called]
        try:
            restored += drilling.restore_databases(plan, sources.client, called, dumps)
        except GbsError as exc:
            problems.append(str(exc))
    return restored


def _held(run: _Drill, plan: Plan, problems: list[str]) -> Sequence[str]:
    held: list[str] = []
    for probe in drilling.probes_of(run.client):
        try:
            held.append(drilling.probe(plan, run.client, probe))
        except GbsError as exc:
            problems.append(str(exc))
    return held
