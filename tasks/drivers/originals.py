"""What the store has published that the permanent store is to have, too."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tasks.drivers.store import Store, listed_model
from tasks.errors import NothingToRecover
from tasks.model.manifest import MANIFEST, TEMPLATE, ImageManifest, ServerManifest, TemplateManifest
from tasks.model.names import slug
from tasks.model.replica import DEVICES, IMAGES, SERVER, TEMPLATES, Original


def vms(store: Store) -> list[str]:
    """The VMs that there are images or templates of."""
    return list(dict.fromkeys(image.vm for _, image in (*store.all_images(), *_templates(store))))


def images(store: Store, vm: str) -> list[Original]:
    """A VM's images, oldest first, so that each finds its parent's replica."""
    found = store.images_of(vm)
    places = {image.id: place_of(image) for _, image in found}
    return [
        Original("image", vm, image.id, folder, places[image.id], image.files, parent=places.get(image.parent or ""))
        for folder, image in reversed(found)
    ]


def templates(store: Store, vm: str) -> list[Original]:
    """The templates that were images of a VM."""
    return [
        Original(
            "template",
            vm,
            image.id,
            folder,
            f"{TEMPLATES}/{folder.parent.name}/{folder.name}",
            image.files,
            (TEMPLATE,),
            twin=place_of(image),
        )
        for folder, image in _templates(store)
        if image.vm == vm
    ]


def configurations(store: Store, devices: Sequence[str]) -> list[Original]:
    """The kept configurations of devices, oldest first."""
    return [
        Original("device", device, kept.id, folder, f"{DEVICES}/{slug(device)}/{kept.id}", kept.files)
        for device in devices
        for folder, kept in reversed(store.configurations_of(device))
    ]


def recovery_sets(store: Store) -> list[Original]:
    """The GBS server's own recovery sets, oldest first."""
    return [
        Original("server", kept.site, kept.id, folder, f"{place_of_sets(kept.site)}/{kept.id}", kept.files)
        for path in sorted(store.recovery_sets.glob(f"[!.]*/{MANIFEST}"))
        if (kept := listed_model(path, ServerManifest)) is not None
        for folder in [path.parent]
    ]


def images_there(permanent: Path, vm: str) -> list[Original]:
    """The replicas of a VM's images in the permanent store, newest first, as originals of what the store is to have."""
    found = []
    for path in permanent.glob(f"{IMAGES}/*/{slug(vm)}/[!.]*/{MANIFEST}"):
        image = listed_model(path, ImageManifest)
        if image is not None and image.vm == vm:
            here = f"images/{slug(image.kvm_host)}/{slug(vm)}"
            parent = f"{here}/{image.parent}" if image.parent else None
            found.append(Original("image", vm, image.id, path.parent, f"{here}/{image.id}", image.files, parent=parent))
    return sorted(found, key=lambda original: original.id, reverse=True)


def choose(there: Sequence[Original], wanted: str, vm: str, root: Path) -> Original:
    """The one of a VM's replicas, newest first, that is `wanted`: an id, or `newest`; NothingToRecover for none."""
    for original in there:
        if wanted in ("newest", original.id):
            return original
    known = ", ".join(original.id for original in there) or "none"
    raise NothingToRecover(f"image {wanted} of VM {vm}", f"the permanent store {root}; it has {known}")


def vms_there(permanent: Path) -> list[str]:
    """The VMs of whose images there are replicas in the permanent store."""
    found = (listed_model(path, ImageManifest) for path in permanent.glob(f"{IMAGES}/*/*/[!.]*/{MANIFEST}"))
    return sorted({image.vm for image in found if image is not None})


def vms_kept(permanent: Path) -> set[str]:
    """The VMs of whose images anything lies in the permanent store, and be it in the trash."""
    found = set()
    for folder in permanent.glob(f"{IMAGES}/*/*"):
        images = (listed_model(path, ImageManifest) for path in sorted(folder.glob(f"*/{MANIFEST}")))
        found |= {image.vm for image in islice(filter(None, images), 1)}
    return found


def place_of(image: ImageManifest) -> str:
    """Where an image's replica lies below the permanent store."""
    return f"{IMAGES}/{slug(image.kvm_host)}/{slug(image.vm)}/{image.id}"


def place_of_sets(site: str) -> str:
    """Where the replicas of a site's recovery sets lie below the permanent store."""
    return f"{SERVER}/{slug(site)}"


def _templates(store: Store) -> list[tuple[Path, ImageManifest]]:
    found = []
    for path in sorted(store.templates.glob(f"*/[!.]*/{TEMPLATE}")):
        image = listed_model(path.with_name(MANIFEST), ImageManifest)
        if image is not None and listed_model(path, TemplateManifest) is not None:
            found.append((path.parent, image))
    return found
