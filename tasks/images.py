"""Images of VMs: find the VM in the KVM hosts' backup data, copy its disks, publish them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tasks import places
from tasks.drivers import backup_api, backup_job, definitions, disk_sources, live_image, offline_image, vm_parts
from tasks.drivers.backup_survey import Parent
from tasks.drivers.chunks import SUFFIX
from tasks.drivers.digest import record
from tasks.drivers.image_order import Order
from tasks.drivers.progress import reporting
from tasks.drivers.space import require_space
from tasks.drivers.store import discard, publish, write_model
from tasks.drivers.tool_versions import tool_versions
from tasks.errors import GbsError, IntegrityError
from tasks.model.definition import Definition
from tasks.model.domain_xml import parse_domain
from tasks.model.image_method import Choice, WantedMethod, Wishes, choose_method
from tasks.model.image_policy import due_reason
from tasks.model.image_taken import Taken, TakenDisk
from tasks.model.manifest import MANIFEST, DiskRecord, FileRecord, ImageManifest, VmParts
from tasks.model.window import select_disks
from tasks.model.window_decision import Power
from tasks.retryable import retryable

log = logging.getLogger(__name__)


@retryable("find VM", "find {vm} in the KVM hosts' backup data", retries=0)
def find(vm: str) -> Definition:
    """The VM's newest verified definition in the overnight copies of all KVM hosts."""
    hosts = {name: host.definitions for name, host in places.inventory().kvm_hosts.items()}
    return definitions.find(places.store(), hosts, vm)


@retryable("image due?", "is the image of {vm} due?", retries=0)
def why_due(client: str, vm: str) -> str | None:
    """Why the VM's image is to be taken now, or None when the one there is serves."""
    store, (_, policy) = places.store(), places.system_of(client)
    images, night = store.images_of(vm), store.night_of(client)
    newest = images[0][1] if images else None
    return due_reason(newest, night.flavour if night else "", datetime.now(UTC), policy.image_max_age_days)


@retryable("stage image", "stage image {image_id} of {vm}", retries=0)
def stage(definition: Definition, vm: str, image_id: str) -> Path:
    """An empty folder for the image, on a store that has room for it; StoreFull otherwise."""
    store = places.store()
    folder = store.images(definition.kvm_host, vm) / f".partial-{image_id}"
    for left in folder.parent.glob(".partial-*"):  # of a run that was killed: the VM's lock is ours now
        discard(left, store.trash, left.name)
    with places.hypervisor(definition.kvm_host) as (host, shell):
        domain = host.domain(definition.domain.uuid)
        disks = select_disks(parse_domain(domain.xml())).taken
        sources = disk_sources.find(shell, domain, disks, shared=True)
    require_space(store.root, sum(source.allocated_bytes for source in sources), places.reserve_bytes())
    folder.mkdir(parents=True)
    return folder


@retryable("capture VM", "capture what makes {definition.domain.name}", retries=1)
def capture(definition: Definition, folder: Path) -> VmParts:
    """Everything but the disks: definitions, UEFI variables, TPM state, kernel; see `vm_parts.capture`."""
    target, _ = places.kvm_host(definition.kvm_host)
    with places.hypervisor(definition.kvm_host) as (host, shell):
        return vm_parts.capture(host, shell, target, host.domain(definition.domain.uuid), folder)


@retryable("choose method", "choose method for {definition.domain.name}", retries=1)
def choose(definition: Definition, power: Power, wanted: WantedMethod | None) -> Choice:
    """How the image is taken: as asked for, else as the VM's policy says; its host shows in a trial what it can do."""
    vm = definition.domain.name
    wanted = wanted or places.policy_of_vm(vm).image_method
    if power is not Power.ON or wanted == "snaplive":
        return choose_method(vm, power, wanted, None)
    with places.hypervisor(definition.kvm_host) as (host, _):
        domain = host.domain(definition.domain.uuid)
        why_not = backup_job.why_unsupported(host, domain, parse_domain(domain.xml()))
    return choose_method(vm, power, wanted, why_not)


@retryable("SnapLive", "take {definition.domain.name} live", retries=1)
def take_live(definition: Definition, image_id: str, folder: Path, reason: str) -> Taken:
    """Snapshot the running VM, copy its disks, commit and pivot; see `live_image.take`.

    One task, so that nothing but the copy stands between snapshot and pivot, and no call to Prefect's API can.
    """
    with _ordered(definition, image_id, folder, reason) as order:
        return live_image.take(order)


@retryable("backup API", "take {definition.domain.name} by the backup API", retries=1)
def take_backup(definition: Definition, image_id: str, folder: Path, reason: str, *, full: bool = False) -> Taken:
    """Copy what changed since the VM's last published image, or all of it, from one instant; see `backup_api.take`."""
    parent = _parent(definition.domain.name, definition.domain.uuid)
    with _ordered(definition, image_id, folder, reason) as order:
        return backup_api.take(replace(order, parent=parent, wishes=replace(order.wishes, full=full)))


def _parent(vm: str, uuid: str) -> Parent | None:
    """The last published image of this very VM."""
    images = [Parent(*found) for found in places.store().images_of(vm) if found[1].uuid == uuid]
    return images[0] if images else None


def _speed_of_last(vm: str) -> float | None:
    """How many bytes a second the last whole copy of the VM's disks made; None when there is none."""
    for _, image in places.store().images_of(vm):
        if image.parent is None and image.copy_s > 1 and image.bytes_moved:
            return image.bytes_moved / image.copy_s
    return None


@retryable("offline copy", "take {definition.domain.name} offline", retries=1)
def take_offline(definition: Definition, image_id: str, folder: Path, reason: str) -> Taken:
    """Copy the disks of a VM that is off, or is shut down for it and started again; see `offline_image.take`."""
    with _ordered(definition, image_id, folder, reason) as order:
        return offline_image.take(order)


@contextmanager
def _ordered(definition: Definition, image_id: str, folder: Path, reason: str) -> Iterator[Order]:
    """An image of the VM, as its policy wants it."""
    policy = places.policy_of_vm(definition.domain.name)
    target, block = places.kvm_host(definition.kvm_host)
    wishes = Wishes(
        freeze_deadline_s=policy.freeze_deadline_s,
        shutdown_deadline_s=policy.shutdown_deadline_s,
        force_shutdown=policy.force_shutdown,
        transfer_deadline_s=policy.transfer_deadline_s,
        max_window_s=policy.max_window_s,
        expected_bytes_per_s=_speed_of_last(definition.domain.name),
        bytes_per_s=policy.bytes_per_s,
        image_folder=block.image_folder,
    )
    journal = places.journal(definition.kvm_host, definition.domain.uuid)
    with places.hypervisor(definition.kvm_host) as (host, shell):
        yield Order(host, shell, target, journal, definition.domain.uuid, image_id, folder, wishes, reason)


@retryable("verify disk", "verify {disk.target} of {vm}", retries=0)
def verify_disk(vm: str, disk: TakenDisk, folder: Path) -> None:
    """IntegrityError unless the copied disk is as large as its source. Its chunks were hashed as they came."""
    path = folder / disk.file
    if path.stat().st_size != disk.virtual_size_bytes:
        raise IntegrityError(str(path), f"{disk.virtual_size_bytes} bytes", f"{path.stat().st_size} bytes")


@retryable("publish image", "publish image {taken.id} of {vm}", retries=0)
def publish_image(folder: Path, definition: Definition, taken: Taken, parts: VmParts, vm: str) -> ImageManifest:
    """Write the manifest last and make the image visible; what was taken is then never changed."""
    client = places.inventory().vms.get(vm)
    night = places.store().night_of(client) if client else None
    with reporting(log, f"checksums of the image of {vm}"):
        files = tuple(_file_record(path, folder) for path in sorted(folder.iterdir()))
    manifest = ImageManifest(
        id=taken.id,
        vm=definition.domain.name,
        uuid=definition.domain.uuid,
        kvm_host=definition.kvm_host,
        started=taken.started,
        ended=datetime.now(UTC),
        instant=taken.instant,
        method=taken.method,
        method_reason=taken.method_reason,
        consistency=taken.consistency,
        consistency_reason=taken.consistency_reason,
        window_s=taken.window_s,
        copy_s=taken.copy_s,
        frozen_s=taken.frozen_s,
        bytes_moved=taken.bytes_moved,
        flavour=night.flavour if night else "",
        parent=taken.parent,
        checkpoint=taken.checkpoint,
        disks=tuple(
            DiskRecord(
                target=disk.target,
                file=disk.file,
                format="raw",
                source=disk.source,
                source_format=disk.source_format,
                source_kind=disk.source_kind,
                volume=disk.volume,
                options=disk.options,
                virtual_size_bytes=disk.virtual_size_bytes,
                increment=disk.increment,
            )
            for disk in taken.disks
        ),
        parts=parts,
        files=files,
        warnings=(*taken.warnings, *parts.warnings),
        tools={**taken.tools, **tool_versions("rsync", "qemu-img", "nbdinfo")},
    )
    write_model(folder / MANIFEST, manifest)
    publish(folder, folder.with_name(taken.id))
    return manifest


def _file_record(path: Path, folder: Path) -> FileRecord:
    """What proves a file: the listing of its chunks where there is one, made as it was copied, else its sha256."""
    chunks = path.with_name(path.name + SUFFIX)
    if chunks.exists():
        return FileRecord(path=path.name, size_bytes=path.stat().st_size, chunks=chunks.name)
    return record(path, folder)


@retryable("delete old checkpoints", "delete old checkpoints of {vm}", retries=0)
def delete_old_checkpoints(definition: Definition, image: ImageManifest, vm: str) -> None:
    """Of our checkpoints, the VM keeps the one of its newest image; what does not go now goes with the next image."""
    try:
        with places.hypervisor(definition.kvm_host) as (host, _):
            domain = host.domain(definition.domain.uuid)
            backup_job.delete_checkpoints(domain, {image.checkpoint} if image.checkpoint else ())
    except GbsError as exc:
        log.warning("VM %s keeps an old checkpoint until its next image: %s", vm, exc)


@retryable("discard image", "discard what was copied of {vm}", retries=0)
def discard_staged(folder: Path, vm: str) -> None:
    """Remove an image that did not become whole."""
    discard(folder, places.store().trash, folder.name)
