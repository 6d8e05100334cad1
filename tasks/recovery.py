"""Bring a VM to a KVM host from an updated image, start it, restore its databases, prove it; or undo all of that."""

import logging
import time
from collections.abc import Sequence
from pathlib import PurePosixPath

from tasks import places
from tasks.drivers import databases, rsync, ssh
from tasks.drivers.databases import command as dump_command
from tasks.drivers.progress import reporting
from tasks.drivers.ssh import Shell
from tasks.errors import (
    CommandFailed,
    DumpFailed,
    IntegrityError,
    RecoveryRefused,
    Unreachable,
)
from tasks.model.databases import Server
from tasks.model.domain_recovery import rewrite_for_recovery
from tasks.model.domain_xml import parse_domain
from tasks.model.inventory_systems import Probe
from tasks.model.manifest import DiskRecord, DumpRecord
from tasks.model.recovery import PlacedDisk, Sources, UpdatedImage, place_of, working_disks
from tasks.retryable import retryable

log = logging.getLogger(__name__)
QUICK_S = 60
CHECKSUM_DEADLINE_S = 6 * 3600
DATABASE_DEADLINE_S = 300
PARTIAL = ".gbs-partial"
TCP_PROBE = 'exec 3<>"/dev/tcp/127.0.0.1/$1"'


@retryable("assess", "assess recovery of {sources.vm} on {kvm_host}")
def assess(sources: Sources, kvm_host: str) -> dict[str, str]:
    """Where each disk would lie on the KVM host; RecoveryRefused for any clash or lack of room, nothing is changed."""
    _, block = places.kvm_host(kvm_host)
    domain = parse_domain(sources.xml)
    what = f"VM {sources.vm}"
    same_host = kvm_host == sources.kvm_host
    disks = working_disks(sources.image)
    paths = {disk.target: place_of(disk, sources.vm, block.image_folder, same_host=same_host) for disk in disks}
    with places.hypervisor(kvm_host) as (host, shell):
        if host.find(domain.name) is not None:
            fix = f"shut it down and rename it: virsh domrename {domain.name} NEW-NAME"
            raise RecoveryRefused(what, f"{kvm_host} has a VM of that name", fix)
        if host.find_uuid(domain.uuid) is not None:
            raise RecoveryRefused(what, f"{kvm_host} has a VM with its UUID {domain.uuid}", "undefine that one first")
        for path in paths.values():
            if shell.run(["test", "-e", path], deadline_s=QUICK_S, check=False).status == 0:
                raise RecoveryRefused(what, f"{path} exists on {kvm_host}", "move it away; it is never overwritten")
        _require_room(shell, sources, paths)
    return paths


def _require_room(shell: Shell, sources: Sources, paths: dict[str, str]) -> None:
    for disk in sources.image.disks:
        folder = str(PurePosixPath(paths[disk.target]).parent)
        output = shell.run(["df", "-B1", "--output=avail", "--", folder], deadline_s=QUICK_S)
        free_bytes = int(output.stdout.split()[-1])
        needed_bytes = (sources.image_folder / disk.file).stat().st_blocks * 512
        if free_bytes < needed_bytes:
            reason = (
                f"{folder} on {shell.target.name} has {free_bytes} bytes free, disk {disk.target} needs {needed_bytes}"
            )
            raise RecoveryRefused(f"VM {sources.vm}", reason, "make room or choose another KVM host with --to")


@retryable("send disk", "send {disk.target} of {updated.vm} to {kvm_host}")
def send_disk(updated: UpdatedImage, disk: DiskRecord, kvm_host: str, path: str) -> PlacedDisk:
    """Copy a disk to the KVM host, compare its sha256 there, and give it its name only then."""
    target, _ = places.kvm_host(kvm_host)
    expected = next(file.sha256 for file in updated.files if file.path == disk.file)
    with reporting(log, f"send {updated.vm} {disk.target}") as progress:
        moved = rsync.send_file(
            target,
            updated.folder / disk.file,
            path + PARTIAL,
            deadline_s=CHECKSUM_DEADLINE_S,
            on_progress=progress.update,
        )
    with ssh.connect(target) as shell, reporting(log, f"checksum of {path} on {kvm_host}"):
        found = shell.run(["sha256sum", "--", path + PARTIAL], deadline_s=CHECKSUM_DEADLINE_S).stdout.lstrip("\\")[:64]
        if found != expected:
            raise IntegrityError(f"{path}{PARTIAL} on {kvm_host}", expected, found)
        shell.run(["mv", "--no-clobber", "-T", "--", path + PARTIAL, path], deadline_s=QUICK_S)
        shell.run(["test", "!", "-e", path + PARTIAL], deadline_s=QUICK_S, name=f"{path} appeared meanwhile")
    return PlacedDisk(target=disk.target, path=path, bytes_sent=moved.sent_bytes)


@retryable("define and start", "start {sources.vm} on {kvm_host}", retries=0)
def start(sources: Sources, kvm_host: str, disks: Sequence[PlacedDisk]) -> tuple[str, ...]:
    """Define the VM from its backed-up definition, through the whitelist, and start it; what was dropped from it."""
    domain = parse_domain(sources.xml)
    rewritten = rewrite_for_recovery(
        sources.xml,
        {disk.target: disk.path for disk in disks},
        name=domain.name,
        uuid=domain.uuid,
        domain_type=domain.type,
        formats={disk.target: disk.format for disk in working_disks(sources.image)},
    )
    with places.hypervisor(kvm_host) as (host, _):
        host.define(rewritten.xml, domain.name)
        host.domain(domain.uuid).call("start", lambda handle: handle.create())
    for lost in rewritten.dropped:
        log.warning("%s: dropped from its definition: %s", domain.name, lost)
    return rewritten.dropped


@retryable("wait for VM", "wait until {client} answers", retries=0)
def wait_until_answers(client: str, deadline_s: float) -> float:
    """Wait until ssh lets us in; the seconds it took. Unreachable past the deadline, AccessDenied for a wrong key."""
    began = time.monotonic()
    with reporting(log, f"{client} boots"):
        while True:
            try:
                with ssh.connect(places.target_of(client)) as shell:
                    shell.run(["true"], deadline_s=QUICK_S)
                return time.monotonic() - began
            except Unreachable:
                if time.monotonic() - began > deadline_s:
                    raise
            time.sleep(2)


@retryable("restore databases", "restore {called} of {client}", retries=1)
def restore_databases(client: str, called: str, dumps: Sequence[DumpRecord]) -> tuple[str, ...]:
    """Restore the dumps of one engine or command, which came back with the files; their names.

    An engine is waited for until it accepts connections. DumpFailed when it does not, when the inventory no longer
    declares it, or when a dump does not load.
    """
    system, policy = places.system_of(client)
    declared = next((database for database in system.databases if database.called == called), None)
    if declared is None:
        folder = PurePosixPath(dumps[0].path).parent
        raise DumpFailed(f"{called} on {client}", f"the inventory no longer declares it; its dumps are in {folder}")
    with ssh.connect(places.target_of(client)) as shell, reporting(log, f"restore {called} of {client}"):
        if declared.engine == "command":
            dump_command.restore(shell, declared.dump_command, dumps, policy.dump_deadline_s)
        else:
            _wait_for(shell, declared.server)
            databases.restore(shell, declared.server, dumps, policy.dump_deadline_s)
    return tuple(f"{dump.engine} {dump.database or dump.kind}" for dump in dumps)


def _wait_for(shell: Shell, server: Server) -> None:
    ends_at = time.monotonic() + DATABASE_DEADLINE_S
    while not databases.is_ready(shell, server):
        if time.monotonic() > ends_at:
            called = f"{server.engine} on {shell.target.name}"
            raise DumpFailed(called, f"it does not accept connections after {DATABASE_DEADLINE_S} s")
        time.sleep(2)


@retryable("probe", "probe {client}: {probe.words}", retries=1)
def probe(client: str, probe: Probe) -> str:
    """Run a probe in the recovered VM; CommandFailed when it does not hold, its words when it does."""
    command = list(probe.command) or ["bash", "-c", TCP_PROBE, "gbs", str(probe.tcp)]
    with ssh.connect(places.target_of(client)) as shell:
        try:
            shell.run(command, deadline_s=QUICK_S)
        except CommandFailed as exc:
            raise CommandFailed(f"probe {probe.words!r} of {client}", *exc.args[1:]) from exc
    return probe.words


@retryable("undo recovery", "undo recovery of {sources.vm} on {kvm_host}", retries=1)
def undo(sources: Sources, kvm_host: str, paths: dict[str, str]) -> None:
    """Remove what this recovery put on the KVM host; `assess` had shown that none of it was there."""
    uuid = parse_domain(sources.xml).uuid
    with places.hypervisor(kvm_host) as (host, shell):
        domain = host.find_uuid(uuid)
        if domain is not None:
            if domain.call("look", lambda handle: bool(handle.isActive())):
                domain.call("stop", lambda handle: handle.destroy())
            domain.call("undefine", lambda handle: handle.undefine())
        for path in paths.values():
            shell.run(["rm", "-f", "--", path, path + PARTIAL], deadline_s=QUICK_S)
