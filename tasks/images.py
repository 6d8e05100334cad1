"""Images of VMs: find the VM in the KVM hosts' backup data, copy its disks, publish them."""

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tasks import places
from tasks.drivers import backup_api, backup_job, definitions, qemu_img, rsync, ssh
from tasks.drivers.backup_api import Wishes
from tasks.drivers.backup_survey import Parent
from tasks.drivers.chunks import SUFFIX
from tasks.drivers.digest import record
from tasks.drivers.host_shell import LocalShell
from tasks.drivers.journal import read_records
from tasks.drivers.libvirt_host import Host
from tasks.drivers.progress import reporting
from tasks.drivers.snaplive import Window, open_window
from tasks.drivers.snaplive_evidence import look
from tasks.drivers.snaplive_settle import close_window
from tasks.drivers.space_watch import SpaceWatch
from tasks.drivers.ssh import Shell
from tasks.drivers.store import discard, publish, require_space, write_model
from tasks.drivers.tool_versions import tool_versions
from tasks.errors import GbsError, HypervisorError, IntegrityError
from tasks.model.definition import Definition
from tasks.model.domain_xml import Disk, parse_domain
from tasks.model.image_method import Choice, WantedMethod, choose_method
from tasks.model.image_policy import due_reason
from tasks.model.image_taken import Taken, TakenDisk
from tasks.model.inventory import Policy
from tasks.model.manifest import MANIFEST, DiskRecord, FileRecord, ImageManifest
from tasks.model.window import PlannedDisk, Step, select_disks
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
    sources = [str(disk.source) for disk in select_disks(definition.domain).taken]
    target, _ = places.kvm_host(definition.kvm_host)
    with ssh.connect(target) as shell:
        lines = shell.run(["stat", "--printf=%b %B\\n", "--", *sources], deadline_s=30).stdout.splitlines()
    needed = sum(int(blocks) * int(size) for blocks, size in map(str.split, lines))
    require_space(store.root, needed, places.reserve_bytes())
    folder.mkdir(parents=True)
    return folder


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
    """Snapshot the running VM, copy its disks, commit and pivot: the window closes whatever happens.

    One task, so that nothing but the copy stands between snapshot and pivot, and no call to Prefect's API can.
    """
    vm, uuid, started = definition.domain.name, definition.domain.uuid, datetime.now(UTC)
    policy, journal = places.policy_of_vm(vm), places.journal(definition.kvm_host, uuid)
    with places.hypervisor(definition.kvm_host) as (host, shell):
        tools = host.versions()
        window = open_window(host, shell, journal, uuid, image_id, freeze_deadline_s=policy.freeze_deadline_s)
        log.info("%s: snapshot of %d disk(s), %s-consistent", vm, len(window.disks), window.consistency)
        began = time.monotonic()
        try:
            _copy_disks(definition.kvm_host, vm, window.disks, folder, policy, _watch(host, shell, window))
        finally:
            copy_s = time.monotonic() - began
            with reporting(log, f"commit {vm}") as progress:
                close_window(host, shell, journal, on_progress=lambda _target, *done: progress.update(*done))
    pivoted = [entry.at for entry in read_records(journal.done_path) if entry.step is Step.PIVOTED]
    return Taken(
        id=image_id,
        started=started,
        instant=window.instant,
        method="snaplive",
        method_reason=reason,
        consistency=window.consistency,
        consistency_reason=window.consistency_reason or "the guest's file systems were frozen for the snapshot",
        window_s=(max(pivoted) - window.instant).total_seconds(),
        copy_s=copy_s,
        frozen_s=window.frozen_s,
        xml=window.plan.xml,
        disks=tuple(_taken(disk) for disk in window.disks),
        tools=tools,
        warnings=window.warnings,
    )


@retryable("backup API", "take {definition.domain.name} by the backup API", retries=1)
def take_backup(definition: Definition, image_id: str, folder: Path, reason: str, *, full: bool = False) -> Taken:
    """Copy what changed since the VM's last published image, or all of it, from one instant; see `backup_api.take`."""
    vm, uuid = definition.domain.name, definition.domain.uuid
    policy, journal = places.policy_of_vm(vm), places.journal(definition.kvm_host, uuid)
    target, _ = places.kvm_host(definition.kvm_host)
    wishes = Wishes(
        full=full, freeze_deadline_s=policy.freeze_deadline_s, transfer_deadline_s=policy.transfer_deadline_s
    )
    with places.hypervisor(definition.kvm_host) as (host, shell):
        return backup_api.take(host, shell, target, journal, uuid, image_id, folder, _parent(vm, uuid), wishes, reason)


def _parent(vm: str, uuid: str) -> Parent | None:
    """The last published image of this very VM."""
    images = [Parent(*found) for found in places.store().images_of(vm) if found[1].uuid == uuid]
    return images[0] if images else None


@retryable("offline copy", "take {definition.domain.name} offline", retries=1)
def take_offline(definition: Definition, image_id: str, folder: Path, reason: str) -> Taken:
    """Copy the disks of a VM that is shut off, as they are; HypervisorError when it was started meanwhile."""
    vm, started = definition.domain.name, datetime.now(UTC)
    with places.hypervisor(definition.kvm_host) as (host, shell):
        domain, tools = host.domain(definition.domain.uuid), host.versions()
        xml = domain.inactive_xml() or definition.xml
        disks = tuple(_at_rest(shell, disk) for disk in select_disks(parse_domain(xml)).taken)
        began = time.monotonic()
        _copy_disks(definition.kvm_host, vm, disks, folder, places.policy_of_vm(vm))
        if look(host, domain.uuid, others=False).power is not Power.OFF:
            raise HypervisorError(vm, "an offline copy", "the VM was started while its disks were copied")
    return Taken(
        id=image_id,
        started=started,
        instant=started,
        method="offline",
        method_reason=reason,
        consistency="file-system",
        consistency_reason="the guest was shut off",
        window_s=0,
        copy_s=time.monotonic() - began,
        frozen_s=0,
        xml=xml,
        disks=tuple(_taken(disk) for disk in disks),
        tools=tools,
    )


def _at_rest(shell: Shell, disk: Disk) -> PlannedDisk:
    source = str(disk.source)
    found = qemu_img.info(shell, source, str(disk.format))
    qemu_img.require_complete(found)
    return PlannedDisk(
        target=disk.target,
        base=source,
        format="raw" if disk.format == "raw" else "qcow2",
        inode=0,
        device=0,
        overlay="",
        virtual_size_bytes=found.virtual_size_bytes,
    )


def _watch(host: Host, shell: Shell, window: Window) -> SpaceWatch:
    folders = [disk.base.rpartition("/")[0] or "/" for disk in window.disks]
    return SpaceWatch(host, shell, window.plan.vm, window.plan.uuid, folders)


def _taken(disk: PlannedDisk) -> TakenDisk:
    return TakenDisk(disk.target, disk.base, disk.format, disk.format, disk.virtual_size_bytes)


def _copy_disks(
    kvm_host: str,
    vm: str,
    disks: Sequence[PlannedDisk],
    folder: Path,
    policy: Policy,
    watch: SpaceWatch | None = None,
) -> None:
    target, _ = places.kvm_host(kvm_host)
    for disk in disks:
        with reporting(log, f"copy {vm} {disk.target}") as progress:
            rsync.fetch_file(
                target,
                disk.base,
                folder / _taken(disk).file,
                deadline_s=policy.transfer_deadline_s,
                on_progress=progress.update,
                watch=watch,
            )


@retryable("verify disk", "verify {disk.target} of {vm}", retries=0)
def verify_disk(vm: str, disk: TakenDisk, folder: Path) -> None:
    """IntegrityError unless the copied disk is whole, sound and as large as its source."""
    path, shell = str(folder / disk.file), LocalShell()
    found = qemu_img.info(shell, path, disk.format)
    qemu_img.require_complete(found)
    if found.virtual_size_bytes != disk.virtual_size_bytes:
        raise IntegrityError(path, f"{disk.virtual_size_bytes} bytes", f"{found.virtual_size_bytes} bytes")
    with reporting(log, f"check {vm} {disk.target}"):
        qemu_img.check(shell, path, disk.format, deadline_s=places.policy_of_vm(vm).transfer_deadline_s)


@retryable("publish image", "publish image {taken.id} of {vm}", retries=0)
def publish_image(folder: Path, definition: Definition, taken: Taken, vm: str) -> ImageManifest:
    """Write the manifest last and make the image visible; what was taken is then never changed."""
    (folder / "domain.xml").write_text(taken.xml, "utf-8", "surrogateescape")
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
        flavour=night.flavour if night else "",
        parent=taken.parent,
        checkpoint=taken.checkpoint,
        disks=tuple(
            DiskRecord(
                target=disk.target,
                file=disk.file,
                format=disk.format,
                source=disk.source,
                source_format=disk.source_format,
                virtual_size_bytes=disk.virtual_size_bytes,
                increment=disk.increment,
            )
            for disk in taken.disks
        ),
        files=files,
        warnings=taken.warnings,
        tools={**taken.tools, **tool_versions("rsync", "qemu-img")},
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
