"""The manifests of the nights in a restic repository: each is read from there once."""

import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tasks.drivers import restic
from tasks.drivers.restic import Snapshot
from tasks.drivers.restic_repository import Repository
from tasks.drivers.store import read_model, write_model
from tasks.errors import IntegrityError
from tasks.model.manifest import MANIFEST, NightManifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifests:
    """Those of a client's repository, kept in `folder` by the id of the tree that a snapshot is of."""

    client: str
    repository: Repository
    folder: Path

    def of(self, snapshot: Snapshot) -> NightManifest | None:
        """The night's; None when it is not there, or damaged."""
        with suppress(IntegrityError):  # that of the repository counts
            if (known := read_model(self._path(snapshot), NightManifest)) is not None:
                return known
        try:
            content = restic.dump(self.repository, snapshot.id, f"/{MANIFEST}")
            manifest = NightManifest.model_validate_json(content or b"")
        except (IntegrityError, ValidationError) as exc:
            log.warning("%s: the manifest of snapshot %s cannot be read: %s", self.client, snapshot.id[:8], exc)
            return None
        try:
            self.keep(snapshot, manifest)
        except OSError as exc:  # a full store, or one that is read-only: no reason to read nothing
            log.warning("%s: a manifest is not kept for the next time: %s", self.client, exc)
        return manifest

    def keep(self, snapshot: Snapshot, manifest: NightManifest) -> None:
        """It is known: it need not be read from the repository."""
        write_model(self._path(snapshot), manifest)

    def keep_only(self, snapshots: Collection[Snapshot]) -> None:
        """Forget those of all other snapshots."""
        trees = {snapshot.tree for snapshot in snapshots}
        for path in self.folder.glob("*.json"):
            if path.stem not in trees:
                path.unlink()

    def _path(self, snapshot: Snapshot) -> Path:
        return self.folder / f"{snapshot.tree}.json"
