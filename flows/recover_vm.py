"""Disaster recovery of a VM: image and last night's files, on any KVM host, booted, databases restored, probed."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.kvmimg_update import choose, update_image
from flows.recovery_approval import require_approval
from flows.run_name import of_recovery
from flows.vm_name import KvmHostName, VmName
from tasks import places, recovery, recovery_assessment, updating
from tasks.errors import GbsError, RecoveredPartly
from tasks.model.assessment import BOOT, DEFINE, PROBE, RESTORE, SEND, UPDATE, Assessment, Work
from tasks.model.assessment_words import markdown
from tasks.model.domain_recovery import Rewritten
from tasks.model.domain_xml import parse_domain
from tasks.model.inventory_systems import Probe
from tasks.model.names import human_age
from tasks.model.recovery import PlacedDisk, Recovered, Sources, Step
from tasks.model.recovery_plan import Order, Plan, parse_networks

log = logging.getLogger(__name__)


@dataclass
class _Recovery:
    """A recovery under way: what it is of, what was done, how long each step took."""

    sources: Sources
    order: Order
    plan: Plan
    work: Work
    steps: list[Step] = field(default_factory=list)
    disks: list[PlacedDisk] = field(default_factory=list)
    dropped: tuple[str, ...] = ()
    image: str = ""
    """The image that was updated; empty when an earlier run had done that."""
    bytes_moved: int = 0

    @contextmanager
    def step(self, name: str, bytes_moved: int = 0) -> Iterator[None]:
        """Measure a step."""
        began = time.monotonic()
        yield
        self.steps.append(Step(name=name, seconds=time.monotonic() - began, bytes_moved=bytes_moved))


@flow(name="recover-vm", flow_run_name=of_recovery)
def recover_vm(
    vm: VmName,
    night: str = "latest",
    to: KvmHostName | None = None,
    as_name: str | None = None,
    networks: Sequence[str] = (),
    isolated: bool = False,
    dry_run: bool = False,
    approval: bool = False,
) -> Recovered | Assessment:
    """Bring back a VM as of a night: its image, updated with that night's files, defined, started, probed.

    Nothing is overwritten: a VM of that name, UUID or MAC, or a file in the way, refuses the recovery before it begins.

    Args:
        vm: The VM, as libvirt names it.
        night: latest, overnight, daily.N, an id, or a date (YYYY-MM-DD).
        to: The KVM host to bring it to. None means the one that had it.
        as_name: Bring it back as a second VM of this name, with a UUID, MACs and files of its own.
        networks: Other networks for its cards, each as OLD=NEW; NEW is a network, bridge:NAME, user, or none.
        isolated: Connect all its cards to a network that leads nowhere.
        dry_run: Only assess: say what would be used, how long it would take, what is missing, whether it fits.
        approval: Assess, then wait for somebody's word in the UI before anything is done.
    """
    sources = choose(vm, night)
    order = Order(
        kvm_host=to or sources.kvm_host, as_name=as_name, networks=parse_networks(networks), isolated=isolated
    )
    plan = recovery_assessment.plan(sources, order)
    if dry_run or approval:
        assessment, _ = recovery_assessment.assess(sources, order, plan)
        create_markdown_artifact(markdown(assessment), key="recover-vm-assessment")
        if dry_run:
            return assessment
        assessment.require_possible()
        require_approval(assessment)
    uuids = sorted({parse_domain(sources.xml).uuid, plan.identity.uuid})
    with ExitStack() as locks:
        for uuid in uuids:
            locks.enter_context(places.locked("vm", uuid))
        locks.enter_context(places.locked("client", sources.client))
        return _recover(_Recovery(sources, order, plan, recovery_assessment.work_of(sources, order)))


def _recover(run: _Recovery) -> Recovered:
    """Until the VM answers a failure removes what was made; a run that was killed is gone on with, or removed too."""
    earlier = recovery.settle(run.sources, run.plan)
    if earlier is None:
        rewritten = _begin(run)
    try:
        if earlier is None:
            _put(run, rewritten)
        else:
            with run.step(DEFINE):
                recovery.go_on(earlier)
        _wait(run)
    except BaseException:
        recovery.undo(run.plan)
        raise
    return _finish(run)


def _begin(run: _Recovery) -> Rewritten:
    """Assess it once more, now that nothing else of ours can be in the way, and note what will be put where."""
    run_id = recovery.new_run()
    assessment, rewritten = recovery_assessment.assess(run.sources, run.order, run.plan, run_id)
    for finding in assessment.findings:
        if finding.verdict != "refused":
            log.warning("%s", finding.words)
    assessment.require_possible()
    recovery.begin(run.sources, run.plan, run_id)
    return rewritten


def _put(run: _Recovery, rewritten: Rewritten) -> None:
    with run.step(UPDATE, run.work.read_bytes):
        updated = update_image(run.sources)
    try:
        recovery.note_working_copy(run.plan, updated)
        with run.step(SEND, run.work.send_bytes):
            run.disks += [recovery.send_disk(updated, place, run.plan) for place in run.plan.disks]
            for place in run.plan.parts:
                recovery.send_part(run.sources, place, run.plan)
        with run.step(DEFINE):
            recovery.start(run.sources, run.plan, rewritten)
    finally:
        updating.remove(updated.folder)
    run.dropped, run.image = rewritten.dropped, updated.image
    run.bytes_moved = updated.bytes_sent + sum(disk.bytes_sent for disk in run.disks)


def _wait(run: _Recovery) -> None:
    _, client = places.client_of_vm(run.sources.vm)
    with run.step(BOOT):
        if run.order.apart:
            has_channel = parse_domain(run.sources.xml).guest_agent
            recovery.wait_for_agent(run.plan, has_channel, client.boot_deadline_s)
        else:
            recovery.wait_until_answers(run.sources.client, client.boot_deadline_s)


def _finish(run: _Recovery) -> Recovered:
    """The VM answers: it is its operator's from here on, and what fails now is said."""
    recovery.keep(run.plan)
    problems: list[str] = []
    restored, probes = _serve(run, problems)
    recovered = Recovered(
        vm=run.sources.vm,
        name=run.plan.identity.name,
        uuid=run.plan.identity.uuid,
        kvm_host=run.plan.kvm_host,
        image=run.image or run.sources.image.id,
        night=run.sources.night.id,
        disks=tuple(run.disks),
        databases=tuple(restored),
        probes=tuple(probes),
        dropped=run.dropped,
        steps=tuple(run.steps),
        bytes_moved=run.bytes_moved,
        problems=tuple(problems),
    )
    recovery.report(recovered)
    _publish(recovered)
    if problems:
        raise RecoveredPartly(recovered.name, recovered.kvm_host, problems)
    return recovered


def _serve(run: _Recovery, problems: list[str]) -> tuple[list[str], list[str]]:
    """Databases and probes; not of a VM that is not reached by its client's address, where the first one may answer."""
    _, client = places.client_of_vm(run.sources.vm)
    if run.order.apart:
        return [], []
    restored, probes = list[str](), list[str]()
    with places.connections_kept():
        if run.sources.night.dumps:
            with run.step(RESTORE):
                restored = _restore_databases(run.sources, problems)
        if client.probes:
            with run.step(PROBE):
                probes = _probe(run.sources.client, client.probes, problems)
    return restored, probes


def _restore_databases(sources: Sources, problems: list[str]) -> list[str]:
    restored: list[str] = []
    for called in dict.fromkeys(dump.called for dump in sources.night.dumps):
        dumps = [dump for dump in sources.night.dumps if dump.called == called]
        try:
            restored += recovery.restore_databases(sources.client, called, dumps)
        except GbsError as exc:
            problems.append(str(exc))
    return restored


def _probe(client: str, probes: Sequence[Probe], problems: list[str]) -> list[str]:
    held: list[str] = []
    for probe in probes:
        try:
            held.append(recovery.probe(client, probe))
        except GbsError as exc:
            problems.append(str(exc))
    return held


def _publish(recovered: Recovered) -> None:
    rows = [{"step": step.name, "took": human_age(step.seconds)} for step in recovered.steps]
    lines = [f"**{recovered.name}** runs on {recovered.kvm_host} as of night {recovered.night}", *recovered.problems]
    create_table_artifact(table=rows, key="recover-vm-report", description="\n\n".join(lines))
