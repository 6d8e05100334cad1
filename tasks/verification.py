"""Published images read again: every byte against its manifest, and the disks by qemu-img's own check."""

import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tasks import places
from tasks.drivers import originals, permanent, qemu_img, replica_check
from tasks.drivers.host_shell import LocalShell
from tasks.drivers.progress import reporting
from tasks.drivers.replica_check import Checked
from tasks.drivers.store import listed_model, read_model, verify_image, write_model
from tasks.errors import IntegrityError, StoreError, UnknownName
from tasks.model.manifest import MANIFEST, ImageManifest
from tasks.model.names import slug
from tasks.model.replica import IMAGES
from tasks.model.verify_choice import WHOLE, Verified, choose_turns, key_of
from tasks.retryable import retryable

log = logging.getLogger(__name__)
CHECK_DEADLINE_S = 6 * 3600


@retryable("choose images", retries=0)
def choose(vm: str | None, older_than_days: int, at_most: int | None) -> list[tuple[Path, ImageManifest]]:
    """The images to read, longest unread first; UnknownName for a VM that the store has no image of."""
    found = [(folder, image) for folder, image in places.store().all_images() if vm in (None, image.vm, image.uuid)]
    if vm is not None and not found:
        raise UnknownName("VM with images", vm, sorted({image.vm for _, image in places.store().all_images()}))
    images = {key_of(image): (folder, image) for folder, image in found}
    made = {key: image.ended for key, (_, image) in images.items()}
    read = {key: record for key in images if (record := listed_model(_record(key), Verified)) is not None}
    turns = choose_turns(made, read, datetime.now(UTC), older_than_days=older_than_days, at_most=at_most)
    return [images[turn.name] for turn in turns]


@retryable("verify image", "verify image {image.id} of {image.vm}", retries=0)
def verify(folder: Path, image: ImageManifest, percent: float = 100) -> Checked:
    """Read an image, and heal it from its replica; IntegrityError for the first that is not as published and stays so.

    A full reading that found it whole, or healed it, is noted.
    """
    record = _record(key_of(image))
    if percent >= WHOLE:
        # First, so that one that stays damaged, or whose reading ends with this process, takes no others' turn.
        before = listed_model(record, Verified) or Verified(image=image.id, at=image.ended)
        try:
            write_model(record, before.model_copy(update={"tried": datetime.now(UTC)}))
        except OSError as exc:  # a full store, say: no reason to read nothing
            log.warning("image %s of %s: it cannot be noted that it is read: %s", image.id, image.vm, exc)
    with reporting(log, f"verify image {image.id} of {image.vm}"):
        try:
            found = Checked(verify_image(folder, image, percent=percent))
        except IntegrityError as exc:
            log.error("%s", exc)
            found = _healed(folder, image)
            if not found.healed:
                raise
            found = replace(found, read_bytes=verify_image(folder, image))
        shell = LocalShell()
        for disk in image.disks:
            path = str(folder / disk.file)
            qemu_img.require_complete(qemu_img.info(shell, path, disk.format))
            qemu_img.check(shell, path, disk.format, deadline_s=CHECK_DEADLINE_S)
    if percent >= WHOLE:
        write_model(record, Verified(image=image.id, at=datetime.now(UTC)))
    return found


def unreadable() -> list[Path]:
    """The folders of images whose manifests cannot be read: they are not among the images."""
    found = []
    for path in sorted(places.store().root.glob(f"images/*/*/[!.]*/{MANIFEST}")):
        try:
            read_model(path, ImageManifest)
        except IntegrityError:
            found.append(path.parent)
    return found


@retryable("heal manifest", "heal manifest of {folder.parent.name}", retries=0)
def heal_manifest(folder: Path) -> Checked:
    """Heal an image whose manifest cannot be read from its replica; IntegrityError when that is not to be had."""
    store, place = places.store(), places.permanent()
    permanent.prove(place)
    replica = place.path / IMAGES / folder.relative_to(store.root / "images")
    found = replica_check.check(place, "image", folder, replica)
    if found.left or not found.healed:
        raise IntegrityError(str(folder / MANIFEST), "an ImageManifest", "something else")
    return found


def _healed(folder: Path, image: ImageManifest) -> Checked:
    """What the image's replica healed; nothing when that is out of reach."""
    place = places.permanent()
    try:
        permanent.prove(place)
        return replica_check.check(place, "image", folder, place.path / originals.place_of(image))
    except StoreError as exc:
        log.error("its replica is out of reach: %s", exc)
        return Checked()


def _record(key: str) -> Path:
    uuid, _, image = key.partition("/")
    return places.store().root / "verified" / slug(uuid) / f"{slug(image)}.json"
