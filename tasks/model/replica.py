"""What the permanent store has besides restore points: one replica of each image, template, configuration, set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.model.manifest import DeviceManifest, FileRecord, ImageManifest, ServerManifest

IMAGES, TEMPLATES, DEVICES, SERVER = "_images", "_templates", "_devices", "_server"
RUNBOOKS = "_runbooks"
"""Folders beside the clients' roots. No slug has an underscore, so no client's root is ever called so."""
Kind = Literal["image", "template", "device", "server"]
Manifest = ImageManifest | DeviceManifest | ServerManifest
MODELS: dict[Kind, type[Manifest]] = {
    "image": ImageManifest,
    "template": ImageManifest,
    "device": DeviceManifest,
    "server": ServerManifest,
}


@dataclass(frozen=True)
class Original:
    """Something published in the store, of which the permanent store is to have a replica."""

    kind: Kind
    name: str
    """The VM, the device, the site."""
    id: str
    folder: Path
    place: str
    """Where its replica lies below the permanent store."""
    files: tuple[FileRecord, ...]
    others: tuple[str, ...] = ()
    """Small files that its manifest does not name."""
    parent: str | None = None
    """The place of the image that it was made from: of its replica, what did not change is cloned."""
    twin: str | None = None
    """The place of an image that has the very same files: they are linked."""
