"""Files inside a VM's images. Needs no Prefect run."""

import logging
from collections.abc import Sequence
from pathlib import Path

from tasks import places
from tasks.drivers.appliance import DiskFile
from tasks.drivers.appliance_listing import ImageFiles, files_in
from tasks.drivers.progress import reporting
from tasks.model.file_history import FileHistory, Found, histories, is_hidden
from tasks.model.manifest import ImageManifest

log = logging.getLogger(__name__)
PREFIX = "image:"
"""What stands before an image's id, or `latest`, where a night could be named."""
DEADLINE_S = 6 * 3600


def find(name: str, pattern: str, wanted: Sequence[str]) -> tuple[list[FileHistory], tuple[str, ...]]:
    """The files that the pattern means in images of a VM, or of a client's: all of them, or the ones named.

    With it what could not be looked at, in words.
    """
    images = [row for one in wanted for row in places.images_named(name, one)] or places.images_named(name, None)
    found = {image.id: _look(name, folder, image, pattern=pattern) for folder, image in images}
    files = {image: looked.files for image, looked in found.items()}
    hidden = {image: looked.unmounted for image, looked in found.items()}
    return histories([*found], files, hidden), tuple(words for row in found.items() for words in _words(*row))


def files_at(name: str, word: str, below: str) -> tuple[dict[str, Found], tuple[str, ...], tuple[str, ...]]:
    """The files at and below a path in the image that `image:ID` or `image:latest` names; each is read there.

    With it the places that could not be looked at, and the same in words.
    """
    folder, image = places.images_named(name, word.removeprefix(PREFIX))[0]
    looked = _look(name, folder, image, below=below)
    return looked.files, tuple(looked.unmounted), _words(image.id, looked)


def _look(name: str, folder: Path, image: ImageManifest, *, below: str = "/", pattern: str | None = None) -> ImageFiles:
    with reporting(log, f"look into image {image.id} of {name}") as progress:
        found = files_in(
            [DiskFile(folder / disk.file, disk.format) for disk in image.disks],
            below=below,
            pattern=pattern,
            deadline_s=DEADLINE_S,
            on_progress=lambda text, part: progress.say(text),
        )
    # What lies in the folder that it would be mounted on is not what the guest has there.
    files = {path: file for path, file in found.files.items() if not is_hidden(path, found.unmounted)}
    return ImageFiles(files, found.unmounted)


def _words(image: str, looked: ImageFiles) -> tuple[str, ...]:
    what = f"image {image}: a file system of the guest could not be mounted, so not looked at"
    return tuple(f"{what}: {place}: {reason}" for place, reason in looked.unmounted.items())
