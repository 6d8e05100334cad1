"""Files out of an image, for a VM that has no files of its own: brought to the store, from where they go on."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tasks import places
from tasks.drivers import appliance_files, qemu_img, store
from tasks.drivers.appliance import DiskFile
from tasks.drivers.digest import write_listing
from tasks.drivers.file_recovery import Selection
from tasks.drivers.host_shell import LocalShell
from tasks.drivers.listings import lines_of
from tasks.drivers.progress import reporting
from tasks.model.manifest import LISTING, ImageManifest
from tasks.retryable import retryable

log = logging.getLogger(__name__)
DEADLINE_S = 6 * 3600


@retryable("choose image", "choose image {wanted} of {name}", retries=0)
def choose(name: str, wanted: str) -> tuple[Path, ImageManifest]:
    """The image that `wanted` names (`latest`, or an id) of a VM, or of the VM that a client is.

    NothingToRecover with what there is.
    """
    return places.images_named(name, wanted)[0]


@retryable("verify image", "verify image {image.id} of {image.vm}", retries=0)
def verify(folder: Path, image: ImageManifest) -> None:
    """IntegrityError unless every file of the image has its size and sha256, and every disk is whole in itself."""
    with reporting(log, f"verify image {image.id}"):
        store.verify_image(folder, image)
    for disk in image.disks:
        qemu_img.require_complete(qemu_img.info(LocalShell(), str(folder / disk.file), disk.format))


@contextmanager
def opened(
    name: str, folder: Path, image: ImageManifest, paths: Sequence[str]
) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A folder of the store with `data`, the paths as the guest has them, and their listing, while the block lasts.

    With it what of the guest could not be looked at, in words.
    """
    scratch = places.store().opened(name) / f"image-{image.id}"
    if scratch.exists():
        store.remove(scratch)
    scratch.mkdir(parents=True, mode=0o700)
    try:
        yield scratch, _bring(folder, image, paths, scratch)
    finally:
        store.remove(scratch)


@retryable("bring files", "bring files out of image {image.id}", retries=0)
def _bring(folder: Path, image: ImageManifest, paths: Sequence[str], scratch: Path) -> tuple[str, ...]:
    (scratch / "data").mkdir()
    with reporting(log, f"files out of image {image.id}") as progress:
        done = appliance_files.copy_out(
            [DiskFile(folder / disk.file, disk.format) for disk in image.disks],
            paths,
            scratch / "data",
            fake_super=places.fake_super(),
            reserve_bytes=places.reserve_bytes(),
            deadline_s=DEADLINE_S,
            on_progress=lambda text, part: progress.say(text if part is None else f"{text} {part:.0%}"),
        )
        write_listing(scratch / "data", scratch / LISTING, None, None)
    return tuple(f"a file system of the guest could not be mounted: {reason}" for reason in done.unmounted)


@retryable("list files", "list what came out of the image", retries=0)
def select(scratch: Path) -> Selection:
    """All that was brought."""
    files = lines_of(scratch / LISTING, ["/"])
    size_bytes = sum((scratch / "data" / os.fsdecode(path)).lstat().st_size for path in files)
    return Selection(files, size_bytes, (), {})
