"""Disaster recovery of a VM: image and last night's files, on any KVM host, booted, databases restored, probed."""

from collections.abc import Sequence
from contextlib import ExitStack

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.instant_vm import instant_vm
from flows.kvmimg_update import choose
from flows.recovery_approval import require_approval
from flows.recovery_run import RecoveryRun, begin, planned, put, restore_each, serve
from flows.run_name import of_recovery
from flows.vm_name import KvmHostName, VmName
from tasks import places, recovery, recovery_assessment
from tasks.errors import ConfigError, GbsError, LeftBehind, RecoveredPartly
from tasks.model.assessment import BOOT, DEFINE, Assessment
from tasks.model.assessment_words import markdown
from tasks.model.domain_xml import parse_domain
from tasks.model.instant import Instant
from tasks.model.manifest import DumpRecord
from tasks.model.names import human_age
from tasks.model.recovery import Recovered, Sources
from tasks.model.recovery_plan import Order, parse_networks
from tasks.model.recovery_record import PutRecord


@flow(name="recover-vm", flow_run_name=of_recovery)
def recover_vm(
    vm: VmName,
    night: str | None = None,
    to: KvmHostName | None = None,
    as_name: str | None = None,
    networks: Sequence[str] = (),
    isolated: bool = False,
    dry_run: bool = False,
    approval: bool = False,
    instant: bool = False,
) -> Recovered | Assessment | Instant:
    """Bring back a VM as of a night: its image, updated with that night's files, defined, started, probed.

    Nothing is overwritten: a VM of that name, UUID or MAC, or a file in the way, refuses the recovery before it begins.

    Args:
        vm: The VM, as libvirt names it.
        night: latest, overnight, daily.N, an id, or a date (YYYY-MM-DD). None means latest; if instant, the image as it
            is, of no later night.
        to: The KVM host to bring it to. None means the one that had it.
        as_name: Bring it back as a second VM of this name, with a UUID, MACs and files of its own.
        networks: Other networks for its cards, each as OLD=NEW; NEW is a network, bridge:NAME, user, or none.
        isolated: Connect all its cards to a network that leads nowhere.
        dry_run: Only assess: say what would be used, how long it would take, what is missing, whether it fits.
        approval: Assess, then wait for somebody's word in the UI before anything is done.
        instant: Run it from its image in the store at once, and move it to its KVM host while it runs, as instant-vm
            does; goes with vm, night and to alone.
    """
    if instant:
        if as_name or networks or isolated or dry_run or approval:
            fix = "leave the others out, or recover without instant"
            raise ConfigError("instant goes with vm, night and to alone", f"recovery of {vm}", fix)
        at_once: Instant = instant_vm(vm, "start", night, to)
        return at_once
    sources = choose(vm, night or "latest")
    order = Order(
        kvm_host=to or sources.kvm_host, as_name=as_name, networks=parse_networks(networks), isolated=isolated
    )
    return bring_back(sources, order, dry_run=dry_run, approval=approval)


def bring_back(sources: Sources, order: Order, *, dry_run: bool, approval: bool) -> Recovered | Assessment:
    """Assess the recovery, have it approved if that is asked for, and do it."""
    run = planned(sources, order)
    if dry_run or approval:
        assessment, _ = recovery_assessment.assess(sources, order, run.plan)
        create_markdown_artifact(markdown(assessment), key="recover-vm-assessment")
        if dry_run:
            return assessment
        assessment.require_possible()
        require_approval(assessment)
    uuids = sorted({parse_domain(sources.xml).uuid, run.plan.identity.uuid})
    with ExitStack() as locks:
        for uuid in uuids:
            locks.enter_context(places.locked("vm", uuid))
        locks.enter_context(places.locked("client", sources.client))
        return _recover(run)


def _recover(run: RecoveryRun) -> Recovered:
    """Until the VM answers a failure removes what this run made; what a killed one had started is never removed."""
    earlier = recovery.settle(run.sources, run.plan)
    if earlier is not None:
        used = _go_on(run, earlier)
        return _finish(run, earlier if used else None)
    rewritten = begin(run)
    try:
        put(run, rewritten)
        _wait(run)
    except BaseException:
        recovery.undo(run.plan)
        raise
    return _finish(run)


def _go_on(run: RecoveryRun, earlier: PutRecord) -> bool:
    """Whether somebody may have used the VM since an earlier run defined it; LeftBehind when it does not answer now.

    RecoveryRefused for one that does not run while it is elsewhere, maybe since.
    """
    run.image, run.dropped, run.gone_on = earlier.image, earlier.dropped, True
    run.warnings += earlier.warnings
    runs = recovery.is_running(earlier)
    if not runs:
        recovery_assessment.require_startable(run.sources, run.order, run.plan)
    try:
        with run.steps.step(DEFINE):
            recovery.go_on(earlier)
        _wait(run)
    except GbsError as exc:
        where = f"VM {earlier.name} on {earlier.kvm_host}, of an earlier run,"
        raise LeftBehind(where, str(exc), earlier.removal) from exc
    return earlier.started or runs


def _wait(run: RecoveryRun) -> None:
    client = places.client(run.sources.client)
    with run.steps.step(BOOT):
        if run.plan.reached:
            recovery.wait_until_answers(run.sources.client, client.boot_deadline_s)
        else:
            has_channel = parse_domain(run.sources.xml).guest_agent
            recovery.wait_for_agent(run.plan, has_channel, client.boot_deadline_s)


def _finish(run: RecoveryRun, used: PutRecord | None = None) -> Recovered:
    """The VM answers: what fails now is said, and it is its operator's; a run that is killed here is gone on with.

    `used`: the record of the earlier run since which somebody may have used the VM.
    """
    _serve(run, used)
    recovery.keep(run.plan)
    recovered = Recovered(
        vm=run.sources.vm,
        name=run.plan.identity.name,
        uuid=run.plan.identity.uuid,
        kvm_host=run.plan.kvm_host,
        image=run.image or run.sources.image.id,
        night=run.sources.night.id,
        disks=tuple(run.disks),
        databases=tuple(run.databases),
        probes=tuple(run.probes),
        dropped=run.dropped,
        steps=tuple(run.steps.taken),
        bytes_moved=run.bytes_moved,
        warnings=tuple(run.warnings),
        problems=tuple(run.problems),
        gone_on=run.gone_on,
    )
    recovery.report(recovered)
    _publish(recovered)
    if run.problems:
        raise RecoveredPartly(recovered.name, recovered.kvm_host, run.problems)
    return recovered


def _serve(run: RecoveryRun, used: PutRecord | None) -> None:
    """Databases and probes; not of a VM that is not reached by its client's address, where the first one may answer.

    No dump is loaded over what may have been written since an earlier run started the VM.
    """
    name = run.sources.client
    if not run.plan.reached:
        return

    def restore(called: str, dumps: Sequence[DumpRecord]) -> Sequence[str]:
        names = recovery.restore_databases(name, called, dumps)
        recovery.note_restored(run.plan, called)
        return names

    if used is not None:
        restore_each(run, lambda called, dumps: recovery.require_restored(used, name, called, dumps))
    with places.connections_kept():
        probes = places.client(name).probes
        serve(run, None if used else restore, probes, lambda probe: recovery.probe(name, probe))


def _publish(recovered: Recovered) -> None:
    rows = [{"step": step.name, "took": human_age(step.seconds)} for step in recovered.steps]
    lines = [f"**{recovered.name}** runs on {recovered.kvm_host} as of night {recovered.night}"]
    lines += [*recovered.problems, *(f"warning: {warning}" for warning in recovered.warnings)]
    create_table_artifact(table=rows, key="recover-vm-report", description="\n\n".join(lines))
