"""Files inside a VM's images. Needs no Prefect run."""

import logging
from collections.abc import Sequence

from tasks import places
from tasks.drivers.appliance import DiskFile
from tasks.drivers.appliance_listing import files_in
from tasks.drivers.progress import reporting
from tasks.errors import NothingToRecover
from tasks.model.file_history import FileHistory, Found, histories
from tasks.model.inventory_systems import Client
from tasks.model.manifest import ImageManifest
from tasks.model.night_choice import LATEST

log = logging.getLogger(__name__)
PREFIX = "image:"
"""What stands before an image's id, or `latest`, where a night could be named."""
DEADLINE_S = 6 * 3600


def find(name: str, pattern: str, wanted: Sequence[str]) -> list[FileHistory]:
    """The files that the pattern means in images of a VM, or of a client's: all of them, or the ones named."""
    images = [image for one in wanted for image in _images(name, one)] or _images(name, None)
    found = {image.id: _files(name, image, pattern=pattern) for image in images}
    return histories([*found], found)


def files_at(name: str, word: str, below: str) -> dict[str, Found]:
    """The files at and below a path in the image that `image:ID` or `image:latest` names; each is read there."""
    return _files(name, _images(name, word.removeprefix(PREFIX))[0], below=below)


def _files(name: str, image: ImageManifest, *, below: str = "/", pattern: str | None = None) -> dict[str, Found]:
    folder = next(folder for folder, row in places.store().images_of(image.vm) if row.id == image.id)
    with reporting(log, f"look into image {image.id} of {name}") as progress:
        found = files_in(
            [DiskFile(folder / disk.file, disk.format) for disk in image.disks],
            below=below,
            pattern=pattern,
            deadline_s=DEADLINE_S,
            on_progress=lambda text, part: progress.say(text),
        )
    for reason in found.unmounted:
        log.warning("image %s: not mounted, so not looked at: %s", image.id, reason)
    return found.files


def _images(name: str, wanted: str | None) -> list[ImageManifest]:
    """The image that a word names, all with None; NothingToRecover with what there is when there is none."""
    declared = places.inventory().clients.get(name)
    vm = declared.vm if isinstance(declared, Client) and declared.vm else name
    images = [image for _, image in places.store().images_of(vm)]
    fitting = images if wanted is None else [row for row in images if row.id == wanted]
    if wanted == LATEST:
        fitting = images[:1]
    if not fitting:
        listed = ", ".join(image.id for image in images) or "none"
        raise NothingToRecover(f"VM {vm}", f"no image is called {wanted!r}; there are: {listed}" if wanted else listed)
    return fitting
