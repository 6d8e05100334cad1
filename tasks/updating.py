"""Bring an image up to a night: what `kvmimg_update` does. The image lies still below overlays and is only read."""

import dataclasses
import logging
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from tasks import places
from tasks.drivers import appliance, claims, qemu_img, whole_disk
from tasks.drivers.appliance import DiskFile, UpdateResult
from tasks.drivers.digest import record, verify_record
from tasks.drivers.host_shell import LocalShell
from tasks.drivers.progress import reporting
from tasks.drivers.space import require_space
from tasks.drivers.store import Store, listed_model, publish, read_model, verify_image, write_model
from tasks.errors import ImageUnfit, IntegrityError, RecoveryRefused, UnknownName
from tasks.model.definition import Definition
from tasks.model.facts import Facts
from tasks.model.image_choice import fits, newest_fitting
from tasks.model.image_update import update_plan
from tasks.model.manifest import MANIFEST, ImageManifest
from tasks.model.names import new_id
from tasks.model.night_choice import Night
from tasks.model.recovery import OVERLAY, Sources, UpdatedImage, growth_bytes, working_disks
from tasks.retryable import retryable

log = logging.getLogger(__name__)
COPY_DEADLINE_S = 6 * 3600
UPDATE_DEADLINE_S = 4 * 3600


@retryable("choose image", "choose image of {vm}", retries=0)
def choose_sources(vm: str, client: str, definition: Definition, night: Night, wanted: str | None = None) -> Sources:
    """The newest image of the VM whose disk layout is that of the night, or the one with the id `wanted`.

    NothingToRecover when none fits, UnknownName when there is no such image.
    """
    none = f"the store has no image of it; run: gbs-kvmimg-get {vm}, or gbs image fetch {vm}"
    images = places.store().images_of(definition.domain.name)
    folder, image = newest_fitting(vm, images, night.manifest, wanted, none=none)
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


def with_older_image(sources: Sources) -> Sources | None:
    """The same with the VM's next older image of that disk layout; None when there is none."""
    for folder, image in () if sources.template else places.store().images_of(sources.vm):
        if image.id < sources.image.id and fits(image, sources.night):
            return sources.model_copy(update={"image_folder": folder, "image": image})
    return None


def with_image(sources: Sources, image_id: str) -> Sources:
    """The same with that image of the VM; UnknownName when there is none."""
    images = places.store().images_of(sources.vm)
    for folder, image in images:
        if image.id == image_id:
            return sources.model_copy(update={"image_folder": folder, "image": image})
    raise UnknownName("image", image_id, [image.id for _, image in images])


@retryable("verify image", "verify image {image.id} of {image.vm}", retries=0)
def verify_sources(folder: Path, image: ImageManifest) -> None:
    """IntegrityError unless every file of the image has its size and sha256."""
    with reporting(log, f"verify image {image.id}"):
        verify_image(folder, image)


@retryable("look for an earlier update", "look for an earlier update of {sources.vm}", retries=0)
def earlier(sources: Sources) -> UpdatedImage | None:
    """What an earlier run made of the same image and the same night, proven by its checksums again; None without one.

    Both are never changed once they are published, so it is what an update would make again. The copy that a recovery
    made for itself is none: it goes with that, and the VM may write to it by another name.
    """
    for path in sorted(places.store().recovery(sources.vm).glob(f"[!.]*/{MANIFEST}"), reverse=True):
        try:
            updated = read_model(path, UpdatedImage)
            wanted = sources.image.id, sources.night.id
            if updated is None or updated.passing or (updated.image, updated.night) != wanted:
                continue
            for file in updated.files:
                verify_record(path.parent, file)
        except IntegrityError as exc:
            log.warning("%s; it is made anew", exc)
            continue
        return updated.model_copy(update={"folder": path.parent})
    return None


@retryable("begin update", "put overlays on image {sources.image.id}", retries=0)
def begin(sources: Sources) -> Path:
    """A working folder with an overlay on each disk of the image; those that earlier runs left behind are removed.

    The caller holds the client's lock: no other run works on this VM. StoreFull without room for the updated disks.
    """
    store = places.store()
    parent = store.recovery(sources.vm)
    for left in [*parent.glob(".*.partial"), *_unclaimed(store, parent)]:
        log.info("remove %s, which a run that ended too early left", left)
        shutil.rmtree(left)
    needed = sum((sources.image_folder / disk.file).stat().st_blocks * 512 for disk in sources.image.disks)
    require_space(store.root, needed + growth_bytes(sources.night), places.reserve_bytes())
    shell = LocalShell()
    bases = {disk: str(sources.image_folder / disk.file) for disk in sources.image.disks}
    for disk, base in bases.items():
        qemu_img.require_complete(qemu_img.info(shell, base, disk.format))
    folder = parent / f".{new_id(datetime.now(UTC))}.partial"
    folder.mkdir(parents=True)
    for disk, base in bases.items():
        qemu_img.create_overlay(shell, str(folder / f"{disk.target}{OVERLAY}"), base, disk.format)
    return folder


def _unclaimed(store: Store, parent: Path) -> list[Path]:
    """The copies that recoveries made for themselves and that no record names: killed before they noted theirs.

    None of them while a record cannot be read: it may be that of a VM that runs from its copy.
    """
    copies = []
    for path in parent.glob(f"[!.]*/{MANIFEST}"):
        updated = listed_model(path, UpdatedImage)
        if updated is not None and updated.passing:
            copies.append(path.parent)
    try:
        in_use = claims.claimed(store)
    except IntegrityError as exc:
        log.error("%s", exc)
        return []
    return [copy for copy in copies if copy not in in_use]


@retryable("update image", "update {sources.vm} to night {sources.night.id}", retries=0)
def update(sources: Sources, files: Path, folder: Path) -> UpdateResult:
    """Make the file systems in the overlays in `folder` hold the night's files, in libguestfs' appliance."""
    facts = read_model(files / "facts.json", Facts)
    if facts is None:
        raise RecoveryRefused(f"VM {sources.vm}", f"night {sources.night.id} has no facts", "choose another night")
    if not facts.file_systems:
        reason = f"the facts of night {sources.night.id} ({facts.os_name}) name no file systems to put its files into"
        raise RecoveryRefused(f"VM {sources.vm}", reason, "define the VM with its image as it is, copy the files then")
    if "/" not in sources.night.paths:
        reason = f"night {sources.night.id} holds only {', '.join(sources.night.paths)}"
        raise RecoveryRefused(f"VM {sources.vm}", reason, "an image needs all file systems: leave out `paths`")
    plan = update_plan(facts, sources.night)
    with reporting(log, f"update {sources.vm}") as progress:
        try:
            result = appliance.update_files(
                [DiskFile(folder / f"{disk.target}{OVERLAY}", "qcow2") for disk in sources.image.disks],
                plan.mounts,
                files / "data",
                image=f"image {sources.image.id} of {sources.vm}",
                keep=plan.keep,
                fake_super=sources.night.fake_super,
                deadline_s=UPDATE_DEADLINE_S,
                on_progress=lambda text, part: progress.say(text if part is None else f"{text} {part:.0%}"),
            )
        except ImageUnfit:
            raise
        except IntegrityError:
            # In the guest a store that cannot be read looks like a damaged disk: another image would not help.
            verify_image(sources.image_folder, sources.image)
            raise
    return dataclasses.replace(result, warnings=(*plan.warnings, *result.warnings))


@retryable("finish update", "make the updated disks of {sources.vm} whole", retries=0)
def finish(
    sources: Sources, folder: Path, result: UpdateResult, warnings: tuple[str, ...] = (), *, passing: bool = False
) -> UpdatedImage:
    """Publish the updated disks: whole, without the image below them, checked by qemu-img, with checksums."""
    shell = LocalShell()
    disks = working_disks(sources.image)
    unchanged = not (result.files_changed or result.files_deleted or result.warnings)
    for disk, wanted in zip(sources.image.disks, disks, strict=True):
        overlay, whole = folder / f"{disk.target}{OVERLAY}", folder / wanted.file
        base = DiskFile(sources.image_folder / disk.file, disk.format)
        with reporting(log, f"make {wanted.file} whole"):
            # With nothing changed it holds only the marks of having been mounted.
            above = None if unchanged else overlay
            whole_disk.make(base, above, DiskFile(whole, wanted.format), disk.options, deadline_s=COPY_DEADLINE_S)
        overlay.unlink()
        qemu_img.require_complete(qemu_img.info(shell, str(whole), wanted.format))
        qemu_img.check(shell, str(whole), wanted.format, deadline_s=COPY_DEADLINE_S)
    with reporting(log, f"checksums of the updated image of {sources.vm}"):
        files = tuple(record(folder / disk.file, folder) for disk in disks)
    final = folder.with_name(folder.name.removeprefix(".").removesuffix(".partial"))
    updated = UpdatedImage(
        vm=sources.vm,
        folder=final,
        image=sources.image.id,
        night=sources.night.id,
        disks=disks,
        files=files,
        files_changed=result.files_changed,
        files_deleted=result.files_deleted,
        bytes_sent=result.bytes_sent,
        warnings=(*warnings, *result.warnings),
        passing=passing,
    )
    write_model(folder / MANIFEST, updated)
    publish(folder, final)
    return updated


@retryable("remove working copy", retries=0)
def remove(folder: Path) -> None:
    """Remove a working copy."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not os.listdir(folder.parent):
        folder.parent.rmdir()
