"""Run a VM from the store at once, move it to its host, or take it away again."""

import logging
from datetime import UTC, datetime
from pathlib import Path

from tasks import places
from tasks.drivers import instant, instant_export, instant_records
from tasks.drivers.progress import reporting
from tasks.drivers.store import read_model, verify_image
from tasks.errors import IntegrityError, LeftBehind, NothingToRecover, UnknownName
from tasks.model.definition import Definition
from tasks.model.domain_recovery import rewrite_for_recovery
from tasks.model.domain_whitelist import Wishes
from tasks.model.domain_xml import parse_domain
from tasks.model.instant import InstantDisk, InstantState, InstantVm, overlay_of
from tasks.model.manifest import MANIFEST, ImageManifest
from tasks.model.recovery import UpdatedImage, place_of
from tasks.model.window import Layer
from tasks.retryable import retryable

log = logging.getLogger(__name__)


def find(vm: str) -> InstantVm | None:
    """The record of a VM that runs from the store, or None."""
    return instant_records.find(places.store(), vm)


def require(vm: str) -> InstantVm:
    """The record of a VM that runs from the store; UnknownName when it does not."""
    record = find(vm)
    if record is None:
        raise UnknownName("VM that runs from the store", vm, [each.vm for each in records()])
    return record


def records() -> list[InstantVm]:
    """The VMs that run from the store."""
    return instant_records.all_of(places.store())


@retryable("choose image", "choose image of {definition.domain.name}", retries=0)
def choose(definition: Definition) -> tuple[Path, ImageManifest]:
    """The VM's newest image; NothingToRecover when the store has none."""
    vm = definition.domain.name
    images = places.store().images_of(vm)
    if not images:
        fix = f"the store has no image of it; run: gbs-kvmimg-get {vm}, or gbs image fetch {vm}"
        raise NothingToRecover(f"VM {vm}", fix)
    return images[0]


@retryable("plan instant recovery", "plan instant recovery of {image.vm}", retries=0)
def plan(xml: str, origin: str, folder: Path, image: ImageManifest, to: str | None) -> InstantVm:
    """What would run where, of an image as it is; IntegrityError when a disk of it is not there in its size."""
    kvm_host = to or origin
    _, block = places.kvm_host(kvm_host)
    domain = parse_domain(xml)
    disks = []
    for disk in image.disks:
        path, size_bytes = folder / disk.file, next(file.size_bytes for file in image.files if file.path == disk.file)
        if not path.is_file() or path.is_symlink() or path.stat().st_size != size_bytes:
            raise IntegrityError(str(path), f"a file of {size_bytes} bytes", "something else, or nothing")
        disks.append(
            InstantDisk(
                target=disk.target,
                served=Layer(path=str(path), format=disk.format),
                overlay=overlay_of(disk, place_of(disk, image.vm, block.image_folder, same_host=kvm_host == origin)),
                size_bytes=disk.virtual_size_bytes,
                moved_bytes_at_most=path.stat().st_blocks * 512,
            )
        )
    rewritten = rewrite_for_recovery(
        xml,
        Wishes(
            {disk.target: disk.overlay for disk in disks},
            name=domain.name,
            uuid=domain.uuid,
            domain_type=domain.type,
            formats={disk.target: "qcow2" for disk in disks},
        ),
    )
    return InstantVm(
        vm=domain.name,
        uuid=domain.uuid,
        kvm_host=kvm_host,
        image=image.id,
        image_folder=folder,
        night=None,
        state=InstantState.STARTING,
        started=datetime.now(UTC),
        disks=tuple(disks),
        xml=rewritten.xml,
        dropped=rewritten.dropped,
    )


def from_copy(record: InstantVm, updated: UpdatedImage) -> InstantVm:
    """The same VM from a working copy that was brought up to a night."""
    copies = {disk.target: disk for disk in updated.disks}
    disks = []
    for disk in record.disks:
        path = updated.folder / copies[disk.target].file
        served = Layer(path=str(path), format=copies[disk.target].format)
        disks.append(disk.model_copy(update={"served": served, "moved_bytes_at_most": path.stat().st_blocks * 512}))
    new = {"disks": tuple(disks), "night": updated.night, "working_copy": updated.folder}
    return record.model_copy(update={**new, "started": datetime.now(UTC)})


@retryable("assess", "assess instant recovery of {record.vm} on {record.kvm_host}")
def assess(record: InstantVm) -> None:
    """RecoveryRefused for any clash or lack of room; nothing is changed."""
    with places.hypervisor(record.kvm_host) as (host, shell):
        instant.require_free(host, shell, record)


@retryable("start from the store", "start {record.vm} on {record.kvm_host} from the store", retries=0)
def start(record: InstantVm) -> InstantVm:
    """Note it, export its disks, and start it on overlays of them."""
    store, (target, _) = places.store(), places.kvm_host(record.kvm_host)
    with places.hypervisor(record.kvm_host) as (host, shell):
        instant.require_free(host, shell, record)
        instant_records.write(store, record, InstantState.STARTING)
        instant_export.begin(host, shell, target, record, instant_records.exports_lock(store, record))
        instant.start(host, shell, record)
    return instant_records.write(store, record, InstantState.RUNNING)


@retryable("serve", "export the disks of {record.vm}")
def serve(record: InstantVm) -> InstantVm:
    """Export its disks again where that has ended, and resume the VM if that had paused it.

    LeftBehind when its host does not know the VM any more.
    """
    store, (target, _) = places.store(), places.kvm_host(record.kvm_host)
    with places.hypervisor(record.kvm_host) as (host, shell):
        if instant.is_active(host, record) is None:
            where = f"what VM {record.vm} has on {record.kvm_host}"
            raise LeftBehind(where, "the host does not know the VM any more", f"gbs instant abandon {record.vm}")
        instant_export.begin(host, shell, target, record, instant_records.exports_lock(store, record))
        if instant.resume(host, record):
            log.warning("VM %s was paused by an I/O error and goes on", record.vm)
    if record.state is InstantState.STARTING:
        record = instant_records.write(store, record, InstantState.RUNNING)
    return record


@retryable("is it started?", "was {record.vm} started?")
def ever_ran(record: InstantVm) -> bool:
    """Whether a VM whose start was cut off runs, and so may hold what somebody wrote."""
    with places.hypervisor(record.kvm_host) as (host, _):
        return bool(instant.is_active(host, record))


@retryable("move to host", "move {record.vm} to {record.kvm_host}", retries=0)
def move(record: InstantVm) -> None:
    """Move its disks to its host and end the exports; the VM goes on meanwhile. The exports are served."""
    store = places.store()
    record = instant_records.write(store, record, InstantState.MOVING)
    with places.hypervisor(record.kvm_host) as (host, shell), reporting(log, f"move {record.vm}") as progress:
        instant.move(host, shell, record, progress.update)
        instant_export.end(instant_records.exports_lock(store, record))
        instant.forget_sockets(shell, record)
    instant_records.forget(store, record)


@retryable("abandon", "abandon {record.vm} on {record.kvm_host}", retries=1)
def abandon(record: InstantVm) -> None:
    """Destroy and undefine the VM, remove its overlays, end the exports. What it wrote is gone."""
    store = places.store()
    with places.hypervisor(record.kvm_host) as (host, shell):
        instant.remove(host, shell, record)
        instant_export.end(instant_records.exports_lock(store, record))
        instant.forget_sockets(shell, record)
    instant_records.forget(store, record)


@retryable("verify image", "verify image {record.image} of {record.vm}", retries=0)
def verify(record: InstantVm) -> None:
    """IntegrityError unless every file of the image, which the VM was read from, is as it was published."""
    image = read_model(record.image_folder / MANIFEST, ImageManifest)
    if image is None:
        raise IntegrityError(str(record.image_folder), "an image", "nothing")
    with reporting(log, f"verify image {image.id}"):
        verify_image(record.image_folder, image)
