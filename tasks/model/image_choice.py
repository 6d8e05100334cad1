"""Which image of a VM a night's files go into."""

from collections.abc import Sequence
from pathlib import Path

from tasks.errors import NothingToRecover, UnknownName
from tasks.model.manifest import ImageManifest, NightManifest

Kept = tuple[Path, ImageManifest]


def fits(image: ImageManifest, night: NightManifest) -> bool:
    """Whether its disk layout is the night's; older images do not tell theirs."""
    return image.flavour in ("", night.flavour)


def newest_fitting(
    vm: str,
    images: Sequence[Kept],
    night: NightManifest,
    wanted: str | None = None,
    *,
    none: str = "there is no image of it",
) -> Kept:
    """The newest image whose disk layout is the night's, or the one with the id `wanted`; `images` are newest first.

    NothingToRecover when none fits, and when there is none, which it says as `none` does; UnknownName when there is no
    such image.
    """
    asked = [kept for kept in images if wanted in (None, kept[1].id)]
    if not asked and wanted is not None:
        raise UnknownName("image", wanted, [image.id for _, image in images])
    if not asked:
        raise NothingToRecover(f"VM {vm}", none)
    fitting = [kept for kept in asked if fits(kept[1], night)]
    if not fitting:
        layouts = ", ".join(f"{image.id} ({image.flavour})" for _, image in asked)
        why = f"night {night.id} has disk layout {night.flavour}, the images have others: {layouts}"
        raise NothingToRecover(f"VM {vm}", why)
    return fitting[0]
