"""Which image of a VM a night's files go into."""

from collections.abc import Sequence
from pathlib import Path

from tasks.errors import NothingToRecover
from tasks.model.manifest import ImageManifest, NightManifest

Kept = tuple[Path, ImageManifest]


def newest_fitting(vm: str, images: Sequence[Kept], night: NightManifest) -> Kept:
    """The newest image whose disk layout is the night's; `images` are newest first. NothingToRecover without one."""
    fitting = [kept for kept in images if kept[1].flavour in ("", night.flavour)]
    if not images:
        raise NothingToRecover(f"VM {vm}", "there is no image of it")
    if not fitting:
        layouts = ", ".join(f"{image.id} ({image.flavour})" for _, image in images)
        why = f"night {night.id} has disk layout {night.flavour}, the images have others: {layouts}"
        raise NothingToRecover(f"VM {vm}", why)
    return fitting[0]
