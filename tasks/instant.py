"""Run a VM from the store at once, move it to its host, or take it away again."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks import places
from tasks.drivers import instant, instant_export, instant_records, qemu_img, recovery_put, rsync
from tasks.drivers.host_shell import LocalShell
from tasks.drivers.progress import reporting
from tasks.drivers.ssh import Shell
from tasks.drivers.store import read_model, verify_image
from tasks.errors import CommandTimedOut, IntegrityError, LeftBehind, NothingToRecover, RecoveryRefused, UnknownName
from tasks.model.definition import Definition
from tasks.model.domain_recovery import Rewritten, run_of
from tasks.model.instant import InstantDisk, InstantState, InstantVm
from tasks.model.manifest import MANIFEST, ImageManifest
from tasks.model.recovery import Original, UpdatedImage
from tasks.model.recovery_plan import Place, Plan
from tasks.model.recovery_record import PutFile
from tasks.model.ssh_target import SshTarget
from tasks.model.window import Layer
from tasks.retryable import retryable

log = logging.getLogger(__name__)
ZEROES_DEADLINE_S = 5
PART_DEADLINE_S = 600
_STATES = {True: InstantState.RUNNING, False: InstantState.OFF}


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
def choose(definition: Definition) -> Original:
    """The VM's newest image as it is; NothingToRecover when the store has none."""
    vm = definition.domain.name
    images = places.store().images_of(vm)
    if not images:
        fix = f"the store has no image of it; run: gbs-kvmimg-get {vm}, or gbs image fetch {vm}"
        raise NothingToRecover(f"VM {vm}", fix)
    folder, image = images[0]
    return Original(vm=vm, kvm_host=definition.kvm_host, xml=definition.xml, image_folder=folder, image=image)


@retryable("note disks", "note the disks of image {original.image.id}", retries=0)
def record_of(original: Original, plan: Plan, rewritten: Rewritten) -> InstantVm:
    """What will run where, of an image as it is; IntegrityError when a disk of it is not there in its size."""
    image, overlays = original.image, {place.role: place.path for place in plan.disks}
    disks = []
    for disk in image.disks:
        path = original.image_folder / disk.file
        size_bytes = next(file.size_bytes for file in image.files if file.path == disk.file)
        if not path.is_file() or path.is_symlink() or path.stat().st_size != size_bytes:
            raise IntegrityError(str(path), f"a file of {size_bytes} bytes", "something else, or nothing")
        disks.append(
            InstantDisk(
                target=disk.target,
                served=Layer(path=str(path), format=disk.format),
                overlay=overlays[disk.target],
                size_bytes=disk.virtual_size_bytes,
                moved_bytes_at_most=path.stat().st_blocks * 512,
            )
        )
    return InstantVm(
        run=run_of(rewritten.xml) or "",
        vm=plan.identity.name,
        uuid=plan.identity.uuid,
        kvm_host=plan.kvm_host,
        image=image.id,
        image_folder=original.image_folder,
        night=None,
        state=InstantState.STARTING,
        started=datetime.now(UTC),
        disks=tuple(disks),
        parts=tuple(PutFile(role=place.role, path=place.path) for place in plan.parts),
        xml=rewritten.xml,
        dropped=rewritten.dropped,
    )


def from_copy(record: InstantVm, updated: UpdatedImage) -> InstantVm:
    """The same VM from a working copy that was brought up to a night, noted; RecoveryRefused when that has other disks.

    The caller holds the client's lock: by the record the next update knows that the copy is in use.
    """
    copies = {disk.target: disk for disk in updated.disks}
    if set(copies) != {disk.target for disk in record.disks}:
        reason = f"image {updated.image}, which had to be taken, has disks {', '.join(sorted(copies))}"
        raise RecoveryRefused(f"VM {record.vm}", reason, f"recover it: gbs recover vm {record.vm}")
    disks = []
    for disk in record.disks:
        copy = copies[disk.target]
        path = updated.folder / copy.file
        new = {"served": Layer(path=str(path), format=copy.format), "size_bytes": copy.virtual_size_bytes}
        disks.append(disk.model_copy(update={**new, "moved_bytes_at_most": path.stat().st_blocks * 512}))
    known: dict[str, Any] = {"image": updated.image, "night": updated.night, "warnings": updated.warnings}
    known |= {"disks": tuple(disks), "working_copy": updated.folder, "started": datetime.now(UTC)}
    return instant_records.write(places.store(), record.model_copy(update=known), InstantState.STARTING)


@retryable("start from the store", "start {record.vm} on {record.kvm_host} from the store", retries=0)
def start(record: InstantVm, parts: Sequence[Place] = ()) -> InstantVm:
    """Note it, export its disks, and start it on overlays of them, which are made while the exports come up.

    `parts` of its image, whose places the record has, are brought to the host before.
    """
    store, (target, _) = places.store(), places.kvm_host(record.kvm_host)
    held = instant_records.exports_lock(store, record)
    with places.hypervisor(record.kvm_host) as (host, shell):
        if record.working_copy is not None:  # it may have grown since it was assessed
            instant.require_room(shell, record, {disk.target: 0 for disk in record.disks})
        instant_records.write(store, record, InstantState.STARTING)
        instant_export.launch(host, shell, target, record, held)
        record = instant.make_overlays(shell, record, _zeroes(record))
        instant_records.write(store, record, InstantState.STARTING)
        record = _bring(shell, target, record, parts)
        instant_export.prove(shell, record, held)
        instant.start(host, record)
    return instant_records.write(store, record, InstantState.RUNNING)


def _bring(shell: Shell, target: SshTarget, record: InstantVm, parts: Sequence[Place]) -> InstantVm:
    """Bring UEFI variables, TPM state or a kernel to the host; the record with which files they are."""
    store = places.store()

    def send(source: Path, path: str) -> int:
        return rsync.send_file(target, source, path, deadline_s=PART_DEADLINE_S).sent_bytes

    for place in parts:
        sha256 = next(file.sha256 for file in _image_of(record).files if file.path == place.file)
        kept = instant_records.Parts(store, record)
        recovery_put.place_file(shell, kept, place, record.image_folder / place.file, str(sha256), send)
    return instant_records.of(store, record.uuid) or record


def _zeroes(record: InstantVm) -> dict[str, list[tuple[int, int]]]:
    """Where the disks are zero, of those that say so soon: it only makes the move quick."""
    found = {}
    for disk in record.disks:
        try:
            found[disk.target] = qemu_img.zeroes(LocalShell(), disk.served, deadline_s=ZEROES_DEADLINE_S)
        except CommandTimedOut as exc:
            log.info("%s: holes of disk %s are read, too, when it moves", exc, disk.target)
    return found


@retryable("serve", "export the disks of {record.vm}")
def serve(record: InstantVm) -> InstantVm:
    """Export its disks again where that has ended, and resume the VM if that had paused it; the record as it is then.

    One that is shut off is OFF. LeftBehind when its host does not know the VM any more.
    """
    store, (target, _) = places.store(), places.kvm_host(record.kvm_host)
    with places.hypervisor(record.kvm_host) as (host, shell):
        active = instant.is_active(host, record)
        if active is None:
            where = f"what VM {record.vm} wrote, in {', '.join(disk.overlay for disk in record.disks)}"
            undo = f"define it again with the xml in {instant_records.path_of(store, record)} (virsh define)"
            undo += f", or lose what it wrote: gbs instant abandon {record.vm}"
            raise LeftBehind(where, f"{record.kvm_host} does not know the VM any more", undo)
        instant_export.begin(host, shell, target, record, instant_records.exports_lock(store, record))
        if active and instant.resume(host, record):
            log.warning("VM %s was paused by an I/O error and goes on", record.vm)
    state = record.state if active and record.state is InstantState.MOVING else _STATES[active]
    return record if state is record.state else instant_records.write(store, record, state)


@retryable("start again", "start {record.vm} on {record.kvm_host} again", retries=0)
def start_again(record: InstantVm) -> InstantVm:
    """Start it again, on its overlays as they are; its disks are served."""
    with places.hypervisor(record.kvm_host) as (host, _):
        instant.start_again(host, record)
    log.warning("VM %s was shut off and is started again, with all that it wrote", record.vm)
    return instant_records.write(places.store(), record, InstantState.RUNNING)


@retryable("is it known?", "does {record.kvm_host} know {record.vm}?")
def is_known(record: InstantVm) -> bool:
    """Whether a VM whose start was cut off was defined: then it may have run, and hold what somebody wrote."""
    with places.hypervisor(record.kvm_host) as (host, _):
        return instant.is_known(host, record)


@retryable("move to host", "move {record.vm} to {record.kvm_host}", retries=0)
def move(record: InstantVm) -> tuple[InstantVm, bool]:
    """Move its disks to its host and end the exports; the VM goes on meanwhile. The exports are served.

    The record as it is then, which `forget` ends, and whether the VM runs.
    """
    store = places.store()
    record = instant_records.write(store, record, InstantState.MOVING)
    with places.hypervisor(record.kvm_host) as (host, shell), reporting(log, f"move {record.vm}") as progress:
        instant.move(host, shell, record, progress.update)
        active = bool(instant.is_active(host, record))
        instant_export.end(instant_records.exports_lock(store, record))
        instant.forget_sockets(shell, record)
    return instant_records.write(store, record, InstantState.MOVED), active


@retryable("abandon", "abandon {record.vm} on {record.kvm_host}", retries=1)
def abandon(record: InstantVm) -> None:
    """Destroy and undefine the VM, remove its overlays, end the exports; `forget` ends its record.

    What it wrote is gone.
    """
    store = places.store()
    with places.hypervisor(record.kvm_host) as (host, shell):
        instant.remove(host, shell, record)
        instant_export.end(instant_records.exports_lock(store, record))
        instant.forget_sockets(shell, record)


@retryable("forget", "the instant recovery of {record.vm} has ended", retries=1)
def forget(record: InstantVm) -> None:
    """Nothing of it is left to do."""
    instant_records.forget(places.store(), record)


@retryable("verify image", "verify image {record.image} of {record.vm}", retries=0)
def verify(record: InstantVm) -> None:
    """IntegrityError unless every file of the image, which the VM was read from, is as it was published."""
    image = _image_of(record)
    with reporting(log, f"verify image {image.id}"):
        verify_image(record.image_folder, image)


def _image_of(record: InstantVm) -> ImageManifest:
    image = read_model(record.image_folder / MANIFEST, ImageManifest)
    if image is None:
        raise IntegrityError(str(record.image_folder), "an image", "nothing")
    return image
