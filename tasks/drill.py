"""What a drill does with a VM that was brought back where it disturbs nobody: prove it, look at it, keep the result."""

import base64
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from prefect.artifacts import create_markdown_artifact

from tasks import places
from tasks.drivers import console, drill_records, probes, recovery_put
from tasks.drivers.agent_shell import AgentShell
from tasks.drivers.databases.back import bring_back, names_of
from tasks.drivers.drill_records import drills_of, publish_metrics, record
from tasks.drivers.progress import reporting
from tasks.errors import GbsError
from tasks.model.drill import Drilled, UnfinishedDrill, due
from tasks.model.drill_words import markdown
from tasks.model.inventory_systems import Probe
from tasks.model.manifest import DumpRecord
from tasks.model.names import new_id
from tasks.model.outcome import Outcome
from tasks.model.recovery_plan import Plan
from tasks.retryable import retryable

log = logging.getLogger(__name__)


def vms_due() -> list[str]:
    """The VMs whose turn it is, by the policy of each; one whose policy has no drills has none."""
    declared, store, now = places.inventory(), places.store(), datetime.now(UTC)
    rhythms: dict[int, dict[str, datetime | None]] = {}
    for vm, client in declared.vms.items():
        if days := declared.policy_of(declared.systems[client]).drill_days:
            newest = next((one for one in drills_of(store, vm) if one.outcome is not Outcome.MISSED), None)
            rhythms.setdefault(days, {})[vm] = newest.started if newest else None
    return [vm for days, last in sorted(rhythms.items()) for vm in due(last, now, days)]


def unfinished() -> list[UnfinishedDrill]:
    """The drills that have not ended: those that run now, and those that were interrupted."""
    return drill_records.unfinished(places.store())


@retryable("clear interrupted drill", "clear what a drill left as {left.name} on {left.kvm_host}")
def clear(left: UnfinishedDrill) -> None:
    """Remove what a drill left, and keep that it was interrupted unless it ended. The VM's lock is held."""
    store, declared = places.store(), places.inventory()
    with places.hypervisor(left.kvm_host) as (host, shell):
        removed = recovery_put.clear(host, shell, recovery_put.Ledger(store, left.kvm_host, left.uuid))
    for what in removed:
        log.info("left by an interrupted drill of %s, removed: %s", left.vm, what)
    # `since` is of whole seconds.
    if any(one.started.replace(microsecond=0) <= left.since <= one.ended for one in drills_of(store, left.vm)):
        return
    told = Drilled(
        id=new_id(left.since),
        vm=left.vm,
        client=declared.vms.get(left.vm, left.vm),
        kvm_host=left.kvm_host,
        image=left.image,
        night=left.night,
        started=left.since,
        ended=datetime.now(UTC),
        outcome=Outcome.MISSED,
        reasons=(f"it was interrupted; what it left on {left.kvm_host} was taken away",),
        unseen="it was interrupted",
    )
    record(store, told, b"")
    publish_metrics(store, list(declared.vms))


@retryable("restore databases in drill", "restore {called} of {client} in its drill", retries=0)
def restore_databases(plan: Plan, client: str, called: str, dumps: Sequence[DumpRecord]) -> tuple[str, ...]:
    """Restore the dumps of one engine in the VM, by its guest agent; their names. RestoreFailed."""
    system, policy = places.system_of(client)
    with places.hypervisor(plan.kvm_host) as (host, _), reporting(log, f"restore {called} of {client}"):
        shell = AgentShell(host.domain(plan.identity.uuid))
        bring_back(shell, system, called, dumps, policy.dump_deadline_s)
    return names_of(dumps)


@retryable("probe drill", "probe {client} in its drill: {probe.words}", retries=1)
def probe(plan: Plan, client: str, probe: Probe) -> str:
    """Run a probe in the VM, by its guest agent; its words. CommandFailed when it does not hold."""
    with places.hypervisor(plan.kvm_host) as (host, _):
        return probes.hold(AgentShell(host.domain(plan.identity.uuid)), client, probe)


@retryable("picture of console", "picture of the console of {plan.identity.name}", retries=0)
def picture(plan: Plan) -> tuple[bytes, str]:
    """The VM's console as PNG; nothing when there is no picture of it, and why.

    Never an error: it is for people, who want to know what went wrong before.
    """
    try:
        with places.hypervisor(plan.kvm_host) as (host, _):
            return console.picture(host.domain(plan.identity.uuid)), ""
    except GbsError as exc:
        log.warning("no picture of the console: %s", exc)
        return b"", str(exc)


@retryable("keep drill", "keep the drill of {drilled.vm}", retries=1)
def keep(drilled: Drilled, shown: bytes) -> None:
    """Put the result in the store, into the metrics, and in front of people."""
    store = places.store()
    record(store, drilled, shown)
    publish_metrics(store, list(places.inventory().vms))
    image = f"data:image/png;base64,{base64.b64encode(shown).decode()}" if shown else ""
    create_markdown_artifact(markdown(drilled, image), key="drill", description=f"drill of {drilled.vm}")
