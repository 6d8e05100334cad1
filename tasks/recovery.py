"""Bring a VM to a KVM host from an updated image, start it, restore its databases, prove it; or undo all of that."""

import logging
import os
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from tasks import places
from tasks.drivers import claims, guest_agent, host_files, probes, recovery_put, rsync, ssh
from tasks.drivers.databases.back import bring_back, names_of
from tasks.drivers.databases.recovering import RECOVERING
from tasks.drivers.host_shell import LocalShell
from tasks.drivers.progress import reporting
from tasks.drivers.recovery_put import Ledger
from tasks.drivers.store import write_model
from tasks.errors import HypervisorError, RecoveryRefused, Unreachable
from tasks.model.domain_recovery import Rewritten
from tasks.model.domain_xml import parse_domain
from tasks.model.inventory_systems import Probe
from tasks.model.manifest import DumpRecord, FileRecord
from tasks.model.names import new_id
from tasks.model.recovery import PlacedDisk, Recovered, Sources, UpdatedImage
from tasks.model.recovery_plan import Place, Plan
from tasks.model.recovery_record import PutRecord, record_of, what_to_do
from tasks.retryable import retryable

log = logging.getLogger(__name__)
QUICK_S = 60
SEND_DEADLINE_S = 6 * 3600


def ledger(kvm_host: str, uuid: str) -> Ledger:
    """The record of what a recovery puts on a KVM host."""
    return Ledger(places.store(), kvm_host, uuid)


@retryable(
    "look for an earlier run", "look what an earlier recovery of {sources.vm} left on {plan.kvm_host}", retries=0
)
def settle(sources: Sources, plan: Plan) -> PutRecord | None:
    """The earlier run of this very recovery whose VM is there, to go on with; else what it never started is removed.

    RecoveryRefused when it started a VM, which may be in use since, as of something else than is asked for now.
    """
    kept = ledger(plan.kvm_host, plan.identity.uuid)
    record = kept.read()
    if record is None:
        return None
    with places.hypervisor(plan.kvm_host) as (host, shell):
        wanted = record_of(plan, "", sources.vm, sources.image.id, sources.night.id)
        found = recovery_put.settlement_of(host, shell, record, wanted)
        if found.verdict == "go on":
            log.info("an earlier run had brought VM %s to %s: going on with it", record.name, plan.kvm_host)
            return record
        if found.verdict == "refused":
            raise RecoveryRefused(f"VM {record.name}", found.reason, found.fix)
        for what in recovery_put.clear(host, shell, kept):
            log.info("left by an earlier run, removed: %s", what)
    return None


def new_run() -> str:
    """The id of a recovery, which no other has."""
    return f"{new_id(datetime.now(UTC))}-{os.urandom(3).hex()}"


@retryable("begin recovery", "note the recovery of {sources.vm} to {plan.kvm_host}", retries=0)
def begin(sources: Sources, plan: Plan, run: str, instead_of: str | None = None, dropped: tuple[str, ...] = ()) -> None:
    """Note what will be put where, before anything is; `instead_of`: the image that was chosen first."""
    record = record_of(plan, run, sources.vm, sources.image.id, sources.night.id)
    record = record.model_copy(update={"instead_of": instead_of, "dropped": dropped})
    ledger(plan.kvm_host, plan.identity.uuid).write(record)


@retryable("note working copy", retries=0)
def note_working_copy(plan: Plan, updated: UpdatedImage) -> None:
    """Note which updated image is this recovery's own, and what is to be known of it."""
    kept = ledger(plan.kvm_host, plan.identity.uuid)
    record = kept.read()
    if record is not None:
        noted = {"working_copy": str(updated.folder), "warnings": updated.warnings}
        kept.write(record.model_copy(update=noted))


@retryable("send disk", "send {place.role} of {updated.vm} to {plan.kvm_host}")
def send_disk(updated: UpdatedImage, place: Place, plan: Plan) -> PlacedDisk:
    """Bring a disk of the updated image to the KVM host, the fastest way; it gets its name when it is proven."""
    with reporting(log, f"send {updated.vm} {place.role}") as progress:
        sent = _put(
            plan, place, updated.folder, updated.files, progress.update, boot_id=host_files.boot_id(LocalShell())
        )
    return PlacedDisk(target=place.role, path=place.path, bytes_sent=sent)


@retryable("send part", "send {place.role} of {sources.vm} to {plan.kvm_host}")
def send_part(sources: Sources, place: Place, plan: Plan) -> None:
    """Bring UEFI variables, TPM state or a kernel from the image to the KVM host."""
    _put(plan, place, sources.image_folder, sources.image.files, None, boot_id=None)


def _put(
    plan: Plan,
    place: Place,
    folder: Path,
    files: Sequence[FileRecord],
    on_progress: rsync.OnProgress | None,
    *,
    boot_id: str | None,
) -> int:
    target, _ = places.kvm_host(plan.kvm_host)
    expected = next(file.sha256 for file in files if file.path == place.file)

    def send(source: Path, path: str) -> int:
        done = rsync.send_file(target, source, path, deadline_s=SEND_DEADLINE_S, on_progress=on_progress)
        return done.sent_bytes

    kept = ledger(plan.kvm_host, plan.identity.uuid)
    with ssh.connect(target) as shell:
        return recovery_put.place_file(shell, kept, place, folder / place.file, str(expected), send, boot_id=boot_id)


@retryable("does it run?", "does {record.name} run on {record.kvm_host}?")
def is_running(record: PutRecord) -> bool:
    """Whether the VM that an earlier run had defined runs."""
    with places.hypervisor(record.kvm_host) as (host, _):
        return host.domain(record.uuid).call("ask whether it runs", lambda handle: bool(handle.isActive()))


@retryable("start again", "start {record.name} on {record.kvm_host}", retries=0)
def go_on(record: PutRecord) -> None:
    """Start what an earlier run had defined, unless it runs."""
    kept = ledger(record.kvm_host, record.uuid)
    with places.hypervisor(record.kvm_host) as (host, _):
        if record.isolated:
            recovery_put.isolate(host, kept)
        recovery_put.start(host, kept)


@retryable("define and start", "start {plan.identity.name} on {plan.kvm_host}", retries=0)
def start(sources: Sources, plan: Plan, rewritten: Rewritten) -> None:
    """Define the VM from its backed-up definition, which went through the whitelist, and start it."""
    kept = ledger(plan.kvm_host, plan.identity.uuid)
    second = plan.identity.uuid != parse_domain(sources.xml).uuid
    pools = sorted({place.volume.partition("/")[0] for place in plan.disks if place.volume})
    with places.hypervisor(plan.kvm_host) as (host, _):
        if plan.isolated:
            recovery_put.isolate(host, kept)
        autostart = sources.image.parts.autostart and not (second or plan.isolated)
        recovery_put.define_and_start(host, kept, rewritten.xml, pools, autostart=autostart)
    for lost in rewritten.dropped:
        log.warning("%s: dropped from its definition: %s", plan.identity.name, lost)


@retryable("see that it is silent", "see that {client} does not answer", retries=0)
def require_silent(client: str) -> None:
    """RecoveryRefused while something answers at the client's address: the dumps would be loaded into that."""
    if ssh.answers(places.target_of(client)):
        raise RecoveryRefused(f"client {client}", "something answers at its address", "switch it off, then again")


@retryable("wait for VM", "wait until {client} answers", retries=0)
def wait_until_answers(client: str, deadline_s: float) -> None:
    """Wait until ssh lets us in. Unreachable past the deadline, AccessDenied for a wrong key."""
    began = time.monotonic()
    with reporting(log, f"{client} boots"):
        while True:
            try:
                with ssh.connect(places.target_of(client)) as shell:
                    shell.run(["true"], deadline_s=QUICK_S)
                return
            except Unreachable:
                if time.monotonic() - began > deadline_s:
                    raise
            time.sleep(2)


@retryable("wait for guest agent", "wait until the guest agent of {plan.identity.name} answers", retries=0)
def wait_for_agent(plan: Plan, has_channel: bool, deadline_s: float) -> None:
    """Wait until the guest agent answers, without its channel only see that the VM runs; GuestAgentError if it is late.

    For a VM that is not reached by its client's address, where the first one may answer.
    """
    began = time.monotonic()
    with places.hypervisor(plan.kvm_host) as (host, _), reporting(log, f"{plan.identity.name} boots"):
        domain = host.domain(plan.identity.uuid)
        while True:
            if not domain.call("ask whether it runs", lambda handle: bool(handle.isActive())):
                raise HypervisorError(plan.identity.name, "wait for the guest", "it does not run any more")
            try:
                return guest_agent.ping(domain) if has_channel else None
            except HypervisorError:
                if time.monotonic() - began > deadline_s:
                    raise
            time.sleep(2)


@retryable("restore databases", "restore {called} of {client}", retries=1)
def restore_databases(client: str, called: str, dumps: Sequence[DumpRecord]) -> tuple[str, ...]:
    """Restore the dumps of one engine or command, which came back with the files; their names. RestoreFailed."""
    system, policy = places.system_of(client)
    with ssh.connect(places.target_of(client)) as shell, reporting(log, f"restore {called} of {client}"):
        bring_back(shell, system, called, dumps, policy.dump_deadline_s)
    return names_of(dumps)


@retryable("note restore", retries=0)
def note_restored(plan: Plan, called: str) -> None:
    """Note that the dumps of one engine or command are loaded: no run that goes on with the VM loads them again."""
    kept = ledger(plan.kvm_host, plan.identity.uuid)
    record = kept.read()
    if record is not None:
        kept.write(record.model_copy(update={"restored": (*record.restored, called)}))


def require_restored(earlier: PutRecord, client: str, called: str, dumps: Sequence[DumpRecord]) -> tuple[str, ...]:
    """The names of dumps that an earlier run loaded into the VM that it started; RecoveryRefused if that is not known.

    They are not loaded now: that would drop what was written since.
    """
    if called in earlier.restored:
        return names_of(dumps)
    names = [dump.database for dump in dumps if dump.engine in RECOVERING and dump.kind == "database"]
    by_hand = f"load by hand what is missing, from {PurePosixPath(dumps[0].path).parent} in it: docs/how-to.md"
    engine = f"--engine {dumps[0].engine} --from {earlier.night} --replace"
    command = f"for each of {', '.join(names)}: gbs recover database {client} NAME {engine}"
    reason = "an earlier run started the VM, which may be in use, and it is not known whether it had loaded the dumps"
    raise RecoveryRefused(f"{called} of {client}", reason, f"look into it; {command if names else by_hand}")


@retryable("probe", "probe {client}: {probe.words}", retries=1)
def probe(client: str, probe: Probe) -> str:
    """Run a probe in the recovered VM; CommandFailed when it does not hold, its words when it does."""
    with ssh.connect(places.target_of(client)) as shell:
        return probes.hold(shell, client, probe)


@retryable("undo recovery", "undo recovery of {plan.identity.name} on {plan.kvm_host}", retries=1)
def undo(plan: Plan) -> None:
    """Take away what this recovery put on the KVM host, by its record."""
    with places.hypervisor(plan.kvm_host) as (host, shell):
        recovery_put.clear(host, shell, ledger(plan.kvm_host, plan.identity.uuid))


@retryable("keep VM", "the recovery of {plan.identity.name} is done", retries=0)
def keep(plan: Plan) -> None:
    """From now on the VM is its operator's: no later run undoes it. A working copy that a killed run left goes."""
    kept = ledger(plan.kvm_host, plan.identity.uuid)
    record = kept.read()
    if record is not None and record.working_copy is not None:
        shutil.rmtree(record.working_copy, ignore_errors=True)
    kept.end()


@retryable("look for interrupted recoveries", retries=0)
def tell_interrupted(vm: str | None = None) -> list[str]:
    """Say which recoveries were cut off, and what to do about each."""
    vms = places.inventory().vms
    found = [
        what_to_do(record, physical=record.vm not in vms)
        for record in recovery_put.interrupted(places.store())
        if vm in (None, record.vm, record.uuid)
    ]
    for words in found:
        log.warning("%s", words)
    return found


@retryable("read records", retries=0)
def require_readable() -> None:
    """IntegrityError for the first record of a recovery, or of a VM that runs from the store, that cannot be read."""
    claims.claimed(places.store())


@retryable("report recovery", "report the recovery of {recovered.name}", retries=1)
def report(recovered: Recovered) -> None:
    """Keep what was done and how long each step took, by which later recoveries are expected."""
    write_model(
        places.store().reports / "recoveries" / f"{new_id(datetime.now(UTC))}-{os.urandom(2).hex()}.json", recovered
    )
