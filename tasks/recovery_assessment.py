"""Assess a recovery: what it would use, how long it would take, what is missing or in the way. Changes nothing."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime

from tasks import places
from tasks.drivers import instant_records, recovery_files, recovery_put, recovery_target, ssh
from tasks.drivers.recovery_target import Need, Target, refused
from tasks.drivers.store import listed_model, read_model
from tasks.errors import GbsError
from tasks.model.assessment import Assessment, Finding, Work, expect, require_possible
from tasks.model.domain_capabilities import Fit
from tasks.model.domain_recovery import Rewritten, rewrite_for_recovery
from tasks.model.domain_whitelist import Wishes
from tasks.model.domain_xml import Domain, parse_domain
from tasks.model.facts import Facts
from tasks.model.instant import InstantVm
from tasks.model.recovery import Original, Recovered, Sources, growth_bytes
from tasks.model.recovery_losses import missing, unreached
from tasks.model.recovery_plan import Identity, Order, Plan, plan_of
from tasks.model.recovery_record import PutRecord, Settlement, record_of
from tasks.retryable import retryable

log = logging.getLogger(__name__)
ALWAYS_ROOM_BYTES = 1 << 20


@retryable("plan recovery", "plan recovery of {sources.vm} to {order.kvm_host}")
def plan(sources: Original, order: Order) -> Plan:
    """Where everything of the VM would go on the KVM host; ConfigError for an order that makes no sense."""
    _, block = places.kvm_host(order.kvm_host)
    with places.hypervisor(order.kvm_host) as (host, shell):
        pools = recovery_target.pools(Target(host, shell), _pool_names(sources))
    return plan_of(sources, order, block.image_folder, pools)


def _pool_names(sources: Original) -> list[str]:
    return [disk.volume.partition("/")[0] for disk in sources.image.disks if disk.volume]


@retryable("assess", "assess recovery of {sources.vm} on {plan.kvm_host}")
def assess(sources: Sources, order: Order, plan: Plan, run: str = "") -> tuple[Assessment, Rewritten]:
    """What is known before the recovery is done, and the definition that the VM would get."""
    domain = parse_domain(sources.xml)
    tpm = sources.image.parts.tpm_state is not None
    earlier = None if run else recovery_put.Ledger(places.store(), plan.kvm_host, plan.identity.uuid).read()
    with places.hypervisor(plan.kvm_host) as (host, shell):
        target = Target(host, shell)
        settled, findings = _settled(target, sources, plan, earlier)
        fit, lacks = recovery_target.capabilities(target, domain, tpm=tpm)
        if settled.verdict != "go on":
            findings += [*_in_the_way(target, sources, plan, domain, earlier), *lacks]
    rewritten = _rewrite(sources, plan, domain, fit, run)
    findings += _there_after_all(sources, order, plan, domain, runs=settled.runs)
    client = places.client(sources.client)
    facts = read_model(places.store().overnight(sources.client) / "facts.json", Facts)
    findings += [*missing(sources, order, domain, client, facts), *unreached(sources, plan, domain, client)]
    return _assessment(sources, plan, findings, rewritten), rewritten


def _settled(
    target: Target, sources: Sources, plan: Plan, earlier: PutRecord | None
) -> tuple[Settlement, list[Finding]]:
    """What becomes of what an earlier run left, and how that is said."""
    if earlier is None:
        return Settlement("clear"), []
    wanted = record_of(plan, "", sources.vm, sources.image.id, sources.night.id)
    settled = recovery_put.settlement_of(target.host, target.shell, earlier, wanted)
    if settled.verdict == "refused":
        return settled, [refused("earlier run", settled.reason, settled.fix)]
    its = f"what it put on {plan.kvm_host} is removed first"
    if settled.verdict == "go on":
        used = earlier.started or settled.runs
        its = f"its VM is gone on with{', which may be in use' if used else ''}"
        if plan.reached and sources.night.dumps:
            its += f"; the night's dumps are {'not loaded over' if used else 'loaded into'} it"
            unknown = sorted({dump.called for dump in sources.night.dumps} - set(earlier.restored)) if used else []
            its += f", and it is not known whether {', '.join(unknown)} came back" if unknown else ""
    return settled, [Finding(verdict="note", subject="earlier run", reason=f"it did not end: {its}")]


def _in_the_way(
    target: Target, sources: Sources, plan: Plan, domain: Domain, earlier: PutRecord | None
) -> list[Finding]:
    """What clashes, and whether there is room."""
    there = recovery_target.pools(target, _pool_names(sources))
    volumes = [disk.volume for disk in sources.image.disks]
    findings = recovery_target.clashes(target, plan, domain, volumes, there, earlier)
    if all(finding.subject != "folder" for finding in findings):
        has = recovery_files.taken_bytes(target.shell, earlier) if earlier is not None else {}
        needed = _needed(sources, {place.role: has.get(place.path, 0) for place in plan.places})
        findings += recovery_target.room(target, plan, needed, growth_bytes(sources.night))
    return findings


def _needed(sources: Original, there_bytes: Mapping[str, int]) -> Mapping[str, Need]:
    """The room that each file takes, by role."""
    sizes = dict.fromkeys(sources.image.parts.files, (ALWAYS_ROOM_BYTES, ALWAYS_ROOM_BYTES)) | {
        disk.target: ((sources.image_folder / disk.file).stat().st_blocks * 512, disk.virtual_size_bytes)
        for disk in sources.image.disks
    }
    return {role: Need(now, most, there_bytes.get(role, 0)) for role, (now, most) in sizes.items()}


def _rewrite(sources: Original, plan: Plan, domain: Domain, fit: Fit, run: str) -> Rewritten:
    parts = {place.role: place.path for place in plan.parts}
    return rewrite_for_recovery(
        sources.xml,
        Wishes(
            {disk.role: disk.path for disk in plan.disks},
            name=plan.identity.name,
            uuid=plan.identity.uuid,
            domain_type=domain.type,
            formats={disk.role: disk.format for disk in plan.disks},
            volumes={disk.role: disk.volume for disk in plan.disks if disk.volume},
            macs=plan.identity.macs,
            networks=plan.networks,
            nvram=parts.get("nvram"),
            boot_files={role: path for role, path in parts.items() if role in ("kernel", "initrd", "dtb")},
            tpm="tpm" in parts,
            machine=fit.machine,
            cpu_mode=fit.cpu_mode,
            run=run or None,
            isolated=plan.isolated,
        ),
    )


def _there_after_all(sources: Sources, order: Order, plan: Plan, domain: Domain, *, runs: bool) -> list[Finding]:
    """Whether the lost system is somewhere: at its address, unless what an earlier run started `runs`; on a host."""
    beside = "--isolated or --as" if sources.vm in places.inventory().vms else "--isolated"
    answering = [] if runs else _answering(sources.client, order, beside)
    return [*answering, *_elsewhere(domain, order, plan.identity, beside), *_from_the_store(domain, order)]


def _answering(client: str, order: Order, beside: str) -> list[Finding]:
    """Whether the lost system is there after all: what is restored and probed by its address would be that.

    `beside` is what brings it back beside that.
    """
    if order.apart or not ssh.answers(places.target_of(client)):
        return []
    fix = f"switch it off, or bring it back beside it: {beside}"
    return [refused("client", f"{client} still answers at its address", fix)]


def _elsewhere(domain: Domain, order: Order, identity: Identity, beside: str) -> list[Finding]:
    """Whether the VM still runs on a KVM host of the inventory, or the second one is there; a silent host is said."""
    # On the host that it comes to a VM of its name or UUID clashes, whether it runs or not.
    names = [] if order.isolated else [name for name in places.inventory().kvm_hosts if name != order.kvm_host]
    # Side by side: of one that is dead this is known after 15 s.
    with ThreadPoolExecutor(len(names) or 1) as threads:
        asked = [threads.submit(copy_context().run, _there, name, domain, order, identity, beside) for name in names]
    return [finding for answer in asked if (finding := answer.result()) is not None]


def _there(name: str, domain: Domain, order: Order, identity: Identity, beside: str) -> Finding | None:
    try:
        with places.hypervisor(name) as (host, _):
            if order.as_name is None:
                found = recovery_target.runs(host, domain.uuid)
            else:
                found = recovery_target.known(host, identity)
    except GbsError as exc:
        return Finding(verdict="note", subject=name, reason=f"it cannot be asked for the VM: {exc}")
    if found is None:
        return None
    if order.as_name is not None:
        reason = f"{name} has VM {found.name}: its name, UUID and MACs would be there twice"
        return refused("second VM", reason, "choose another name, or --isolated")
    fix = f"stop it (virsh shutdown {found.name}), or bring it back beside it: {beside}"
    return refused("source VM", f"it still runs on {name}", fix)


def _from_the_store(domain: Domain, order: Order) -> list[Finding]:
    """Whether an instant recovery of the VM has not ended: what it wrote is nowhere else, and it can start again.

    IntegrityError when that cannot be told.
    """
    record = None if order.apart else instant_records.of(places.store(), domain.uuid)
    if record is None:
        return []
    fix = f"end that first: gbs instant keep {record.vm}, or gbs instant abandon {record.vm}"
    return [refused("instant recovery", f"it has run from the store on {record.kvm_host} and is {record.state}", fix)]


def _assessment(sources: Sources, plan: Plan, findings: list[Finding], rewritten: Rewritten) -> Assessment:
    definition = places.store().night_of(sources.kvm_host)
    return Assessment(
        vm=sources.vm,
        plan=plan,
        assessed=datetime.now(UTC),
        image=sources.image.id,
        image_instant=sources.image.instant,
        night=sources.night.id,
        night_name=sources.night_name,
        night_ended=sources.night.ended,
        definition=sources.kvm_host,
        definition_ended=definition.ended if definition else None,
        databases=tuple(f"{dump.engine} {dump.database or dump.kind}" for dump in sources.night.dumps),
        dropped=rewritten.dropped,
        findings=tuple(findings),
        expected=expect(work_of(sources, plan), _past()),
    )


def work_of(sources: Sources, plan: Plan) -> Work:
    """What the recovery has to read and send."""
    image = sources.image
    allocated = sum((sources.image_folder / disk.file).stat().st_blocks * 512 for disk in image.disks)
    return Work(
        vm=sources.vm,
        kvm_host=plan.kvm_host,
        read_bytes=allocated + sources.night.size_bytes,
        send_bytes=allocated,
        databases=bool(sources.night.dumps) and plan.reached,
        probes=bool(places.client(sources.client).probes) and plan.reached,
        copied_bytes_s=image.bytes_moved / image.copy_s if image.bytes_moved and image.copy_s > 1 else None,
    )


def _past() -> list[Recovered]:
    """The recoveries that were measured from their beginning, newest last."""
    paths = sorted((places.store().reports / "recoveries").glob("*.json"))
    found = (listed_model(path, Recovered) for path in paths[-200:])
    return [recovered for recovered in found if recovered is not None and not recovered.gone_on]


@retryable("assess", "assess instant recovery of {original.vm} on {plan.kvm_host}")
def assess_at_once(original: Original, order: Order, plan: Plan, run: str) -> Rewritten:
    """The definition, marked by `run`, of a VM that is to run before its disks are there.

    RecoveryRefused with all that is in its way.
    """
    domain, volumes = parse_domain(original.xml), [disk.volume for disk in original.image.disks]
    client, beside = places.inventory().vms.get(original.vm), _beside(original.vm)
    with ThreadPoolExecutor(1) as threads:
        # Meanwhile: of an address where nothing is this is known after 20 s.
        answers = threads.submit(copy_context().run, _answering, client, order, beside) if client else None
        with places.hypervisor(plan.kvm_host) as (host, shell):
            target = Target(host, shell)
            there = recovery_target.pools(target, _pool_names(original))
            findings = _from_the_store(domain, order)
            findings += recovery_target.clashes(target, plan, domain, volumes, there)
            if all(finding.subject != "folder" for finding in findings):
                findings += recovery_target.room(target, plan, _needed(original, {}))
            tpm = original.image.parts.tpm_state is not None
            fit, lacks = recovery_target.capabilities(target, domain, tpm=tpm)
        findings += [*lacks, *_elsewhere(domain, order, plan.identity, beside), *(answers.result() if answers else ())]
    _require_possible(original.vm, findings)
    return _rewrite(original, plan, domain, fit, run)


@retryable("look again", "see that {record.vm} is nowhere else")
def require_nowhere_else(record: InstantVm) -> None:
    """RecoveryRefused when the VM has come back, here or elsewhere, since it was found to be lost, maybe hours ago.

    To be asked right before it is started, while it does not run.
    """
    order, domain = Order(kvm_host=record.kvm_host), parse_domain(record.xml)
    client, beside = places.inventory().vms.get(record.vm), _beside(record.vm)
    findings = _elsewhere(domain, order, Identity(name=record.vm, uuid=record.uuid), beside)
    _require_possible(record.vm, [*findings, *(_answering(client, order, beside) if client else ())])


def _beside(vm: str) -> str:
    """Instant recovery itself only ever brings back the VM in its place."""
    return f"gbs recover vm {vm} --isolated"


@retryable("look again", "see that {plan.identity.name} is nowhere else")
def require_startable(sources: Sources, order: Order, plan: Plan) -> None:
    """RecoveryRefused while the VM that an earlier run had defined is elsewhere, or runs from the store.

    To be asked right before it is started, while it does not run.
    """
    findings = _there_after_all(sources, order, plan, parse_domain(sources.xml), runs=False)
    _require_possible(plan.identity.name, findings)


def _require_possible(vm: str, findings: list[Finding]) -> None:
    for finding in findings:
        if finding.verdict != "refused":
            log.warning("%s", finding.words)
    require_possible(vm, findings)
