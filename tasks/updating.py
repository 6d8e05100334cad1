"""Bring a copy of an image up to a night: what `kvmimg_update` does."""

import logging
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from tasks import places
from tasks.drivers import appliance, process, qemu_img
from tasks.drivers.appliance import MountedBy, UpdateResult
from tasks.drivers.digest import record
from tasks.drivers.host_shell import LocalShell
from tasks.drivers.progress import reporting
from tasks.drivers.space import require_space
from tasks.drivers.store import read_model, sync_tree, verify_image, write_model
from tasks.errors import IntegrityError, NothingToRecover, RecoveryRefused
from tasks.model.definition import Definition
from tasks.model.facts import Facts
from tasks.model.manifest import MANIFEST, ImageManifest
from tasks.model.names import new_id
from tasks.model.night_choice import Night
from tasks.model.recovery import Sources, UpdatedImage, working_disks
from tasks.retryable import retryable

log = logging.getLogger(__name__)
BELONGS_TO_DISK = ("/boot/grub/i386-pc/", "/boot/grub2/i386-pc/")
"""GRUB's modules fit the core image in the boot sector of the very disk, which is not a file."""
COPY_DEADLINE_S = 6 * 3600
UPDATE_DEADLINE_S = 4 * 3600


@retryable("choose image", "choose image of {vm}", retries=0)
def choose_sources(vm: str, client: str, definition: Definition, night: Night) -> Sources:
    """The newest image of the VM whose disk layout is that of the night; NothingToRecover when there is none."""
    images = places.store().images_of(definition.domain.name)
    fitting = [(folder, image) for folder, image in images if image.flavour in ("", night.manifest.flavour)]
    if not images:
        raise NothingToRecover(
            f"VM {vm}", f"the store has no image of it; run: gbs-kvmimg-get {vm}, or gbs image fetch {vm}"
        )
    if not fitting:
        layouts = ", ".join(f"{image.id} ({image.flavour})" for _, image in images)
        why = f"night {night.manifest.id} has disk layout {night.manifest.flavour}, the images have others: {layouts}"
        raise NothingToRecover(f"VM {vm}", why)
    folder, image = fitting[0]
    return Sources(
        vm=definition.domain.name,
        client=client,
        kvm_host=definition.kvm_host,
        xml=definition.xml,
        image_folder=folder,
        image=image,
        night_name=night.name,
        night_folder=night.folder,
        night=night.manifest,
    )


@retryable("verify image", "verify image {image.id} of {image.vm}", retries=0)
def verify_sources(folder: Path, image: ImageManifest) -> None:
    """IntegrityError unless every file of the image has its size and sha256."""
    with reporting(log, f"verify image {image.id}"):
        verify_image(folder, image)


@retryable("copy image", "copy image {sources.image.id}", retries=0)
def copy_image(sources: Sources) -> Path:
    """A private copy of the image's disks (a reflink where the store can); the image itself is never changed."""
    store = places.store()
    folder = store.recovery(sources.vm) / new_id(datetime.now(UTC))
    needed = sum((sources.image_folder / disk.file).stat().st_blocks * 512 for disk in sources.image.disks)
    require_space(store.root, needed + sources.night.size_bytes // 4, places.reserve_bytes())
    folder.mkdir(parents=True)
    for disk, wanted in zip(sources.image.disks, working_disks(sources.image), strict=True):
        source, target = str(sources.image_folder / disk.file), str(folder / wanted.file)
        argv = ["cp", "--reflink=auto", "--sparse=always", "--", source, target]
        if wanted.format != disk.format:
            argv = qemu_img.convert_argv(source, disk.format, target, wanted.format, disk.options)
        with reporting(log, f"copy {disk.file}"):
            process.run(argv, deadline_s=COPY_DEADLINE_S, name=f"copy of {disk.file}")
    return folder


@retryable("update image", "update {sources.vm} to night {sources.night.id}", retries=0)
def update(sources: Sources, files: Path, folder: Path) -> UpdateResult:
    """Make the file systems in the disks copied to `folder` hold the night's files, in libguestfs' appliance."""
    facts = read_model(files / "facts.json", Facts)
    if facts is None:
        raise IntegrityError(str(files / "facts.json"), "the facts of the night", "nothing")
    if not facts.file_systems:
        reason = f"the facts of night {sources.night.id} ({facts.os_name}) name no file systems to put its files into"
        raise RecoveryRefused(f"VM {sources.vm}", reason, "define the VM with its image as it is, copy the files then")
    pulled = set(sources.night.paths)
    systems = [row for row in facts.file_systems if row.mountpoint in pulled]
    if "/" not in pulled:
        reason = f"night {sources.night.id} holds only {', '.join(sources.night.paths)}"
        raise RecoveryRefused(f"VM {sources.vm}", reason, "an image needs all file systems: leave out `paths`")
    if len(sources.image.disks) != 1:
        raise RecoveryRefused(f"VM {sources.vm}", "its image has several disks", "only one is supported for now")
    (disk,) = working_disks(sources.image)
    kept = [pattern for pattern in sources.night.excluded if pattern.startswith("/")]
    # Each file system has a lost+found of its own that no backup holds.
    kept += [f"{row.mountpoint.rstrip('/')}/lost+found" for row in systems]
    with reporting(log, f"update {sources.vm}") as progress:
        return appliance.update_files(
            folder / disk.file,
            disk.format,
            [MountedBy(row.mountpoint, row.uuid or "", row.fstype) for row in systems],
            files / "data",
            keep=(*kept, *BELONGS_TO_DISK),
            fake_super=sources.night.fake_super,
            deadline_s=UPDATE_DEADLINE_S,
            on_progress=lambda text, part: progress.say(text if part is None else f"{text} {part:.0%}"),
        )


@retryable("record update", "check the updated image of {sources.vm}", retries=0)
def finish(sources: Sources, folder: Path, result: UpdateResult) -> UpdatedImage:
    """Check the updated disks with qemu-img, write their checksums and a manifest."""
    shell = LocalShell()
    disks = working_disks(sources.image)
    for disk in disks:
        qemu_img.require_complete(qemu_img.info(shell, str(folder / disk.file), disk.format))
        qemu_img.check(shell, str(folder / disk.file), disk.format, deadline_s=COPY_DEADLINE_S)
    with reporting(log, f"checksums of the updated image of {sources.vm}"):
        files = tuple(record(folder / disk.file, folder) for disk in disks)
    updated = UpdatedImage(
        vm=sources.vm,
        folder=folder,
        image=sources.image.id,
        night=sources.night.id,
        disks=disks,
        files=files,
        files_changed=result.files_changed,
        files_deleted=result.files_deleted,
        bytes_sent=result.bytes_sent,
    )
    sync_tree(folder)
    write_model(folder / MANIFEST, updated)
    return updated


@retryable("remove working copy", retries=0)
def remove(folder: Path) -> None:
    """Remove a working copy."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not os.listdir(folder.parent):
        folder.parent.rmdir()
