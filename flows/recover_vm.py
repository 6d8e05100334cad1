"""Disaster recovery of a VM: image and last night's files, on any KVM host, booted, databases restored, probed."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.kvmimg_update import choose, update_image
from flows.run_name import of_recovery
from flows.vm_name import KvmHostName, VmName
from tasks import places, recovery, updating
from tasks.errors import GbsError, RecoveredPartly
from tasks.model.domain_xml import parse_domain
from tasks.model.inventory_systems import Probe
from tasks.model.names import human_age
from tasks.model.recovery import Recovered, Sources, UpdatedImage

log = logging.getLogger(__name__)


class Steps:
    """What was done and how long each step took, in order."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, float]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step."""
        began = time.monotonic()
        yield
        self.taken.append((name, time.monotonic() - began))


@flow(name="recover-vm", flow_run_name=of_recovery)
def recover_vm(
    vm: VmName, night: str = "latest", to: KvmHostName | None = None, dry_run: bool = False
) -> Recovered | None:
    """Bring back a VM as of a night: its image, updated with that night's files, defined, started, probed.

    Nothing is overwritten: a VM of that name or UUID, or a disk in the way, refuses the recovery before it begins.

    Args:
        vm: The VM, as libvirt names it.
        night: latest, overnight, daily.N, an id, or a date (YYYY-MM-DD).
        to: The KVM host to bring it to. None means the one that had it.
        dry_run: Only assess: say what would be used and whether it fits.
    """
    steps = Steps()
    with steps.step("choose image and night"):
        sources = choose(vm, night)
    kvm_host = to or sources.kvm_host
    uuid = parse_domain(sources.xml).uuid
    with places.locked("vm", uuid), places.locked("client", sources.client):
        with steps.step("assess"):
            paths = recovery.assess(sources, kvm_host)
        _say_plan(sources, kvm_host, paths)
        if dry_run:
            return None
        with steps.step("update image with files"):
            updated = update_image(sources)
        try:
            return _bring_back(sources, updated, kvm_host, paths, steps)
        finally:
            updating.remove(updated.folder)


def _say_plan(sources: Sources, kvm_host: str, paths: dict[str, str]) -> None:
    log.info("image %s, taken %s", sources.image.id, sources.image.instant.isoformat(timespec="seconds"))
    log.info("files of night %s (%s)", sources.night.id, sources.night_name)
    for target, path in paths.items():
        log.info("disk %s goes to %s on %s", target, path, kvm_host)


def _bring_back(
    sources: Sources, updated: UpdatedImage, kvm_host: str, paths: dict[str, str], steps: Steps
) -> Recovered:
    """Send, start, restore, probe. Until the VM answers a failure removes it; after that it is left running."""
    _, client = places.client_of_vm(sources.vm)
    try:
        with steps.step(f"send disks to {kvm_host}"):
            disks = [recovery.send_disk(updated, disk, kvm_host, paths[disk.target]) for disk in updated.disks]
        with steps.step("define and start"):
            dropped = recovery.start(sources, kvm_host, disks)
        with steps.step("boot until ssh answers"):
            recovery.wait_until_answers(sources.client, client.boot_deadline_s)
    except BaseException:
        recovery.undo(sources, kvm_host, paths)
        raise
    problems: list[str] = []
    with places.connections_kept():
        with steps.step("restore databases"):
            restored = _restore_databases(sources, problems)
        with steps.step("probe"):
            probes = _probe(sources.client, client.probes, problems)
    recovered = Recovered(
        vm=sources.vm,
        uuid=parse_domain(sources.xml).uuid,
        kvm_host=kvm_host,
        image=sources.image.id,
        night=sources.night.id,
        disks=tuple(disks),
        databases=tuple(restored),
        probes=tuple(probes),
        dropped=dropped,
        steps=tuple(steps.taken),
        bytes_moved=updated.bytes_sent + sum(disk.bytes_sent for disk in disks),
    )
    _publish(recovered, problems)
    if problems:
        raise RecoveredPartly(sources.vm, kvm_host, problems)
    return recovered


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


def _publish(recovered: Recovered, problems: Sequence[str]) -> None:
    rows = [{"step": name, "took": human_age(seconds)} for name, seconds in recovered.steps]
    lines = [f"**{recovered.vm}** runs on {recovered.kvm_host} as of night {recovered.night}", *problems]
    create_table_artifact(table=rows, key="recover-vm-report", description="\n\n".join(lines))
