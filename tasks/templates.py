"""Templates: images that serve every system of the same shape of disks."""

import logging
import os
from datetime import UTC, datetime
from pathlib import Path

from tasks import places
from tasks.drivers import appliance
from tasks.drivers.appliance import DiskFile
from tasks.drivers.progress import reporting
from tasks.drivers.store import discard, publish, verify_image, write_model
from tasks.errors import UnknownName
from tasks.model.domain_xml import parse_domain
from tasks.model.manifest import MANIFEST, TEMPLATE, ImageManifest, TemplateManifest
from tasks.model.shape import Shape
from tasks.retryable import retryable

log = logging.getLogger(__name__)


@retryable("find image", "find image {name}", retries=0)
def find_image(name: str) -> tuple[Path, ImageManifest]:
    """The image `VM/ID`, or the newest of the VM; UnknownName when there is none."""
    vm, _, wanted = name.rpartition("/") if "/" in name else (name, "", "")
    images = places.store().images_of(vm)
    found = [item for item in images if wanted in ("", item[1].id)]
    if not found:
        known = [f"{image.vm}/{image.id}" for _, image in places.store().all_images()]
        raise UnknownName("image", name, known)
    return found[0]


@retryable("read shape", "read the shape of image {image.id} of {image.vm}", retries=0)
def read_shape(folder: Path, image: ImageManifest) -> Shape:
    """The shape of the image's disks, as libguestfs finds it; IntegrityError when the image is damaged."""
    firmware = parse_domain((folder / "domain.xml").read_text("utf-8", "surrogateescape")).firmware
    with reporting(log, f"verify image {image.id}"):
        verify_image(folder, image)
    with reporting(log, f"shape of image {image.id}") as progress:
        return appliance.shape_of(
            [DiskFile(folder / disk.file, disk.format) for disk in image.disks],
            "uefi" if firmware == "efi" else "bios",
            on_progress=lambda text, _part: progress.say(text),
        )


@retryable("add template", "add image {image.id} of {image.vm} as template", retries=0)
def add(folder: Path, image: ImageManifest, shape: Shape) -> TemplateManifest:
    """Publish the image as a template of its flavour, without a second copy of its bytes; again is harmless."""
    store = places.store()
    template = TemplateManifest(
        flavour=shape.flavour, shape=shape, vm=image.vm, image=image.id, added=datetime.now(UTC)
    )
    target = store.templates / shape.flavour / folder.name
    partial = target.with_name(f".partial-{folder.name}")
    discard(partial, store.trash, partial.name)
    partial.mkdir(parents=True)
    for name in (MANIFEST, *(file.path for file in image.files)):
        os.link(folder / name, partial / name)
    write_model(partial / TEMPLATE, template)
    if not target.exists():
        publish(partial, target)
    discard(partial, store.trash, partial.name)
    return template
