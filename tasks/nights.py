"""The nights of a client that can be recovered: the overnight copy and the restore points."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks import places
from tasks.drivers import permanent, restore_points
from tasks.drivers.digest import verify_listing
from tasks.drivers.progress import reporting
from tasks.drivers.store import verify_night
from tasks.errors import GbsError, StoreError
from tasks.model.manifest import LISTING, NightManifest
from tasks.model.names import slug
from tasks.model.night_choice import OVERNIGHT, Night, choose
from tasks.retryable import retryable

log = logging.getLogger(__name__)


def nights_of(client: str) -> list[Night]:
    """Every night with a manifest: the overnight copy, then the restore points if the permanent store is there."""
    store, engine = places.store(), places.engine_of(client)
    night = store.night_of(client)
    found = [Night(OVERNIGHT, store.overnight(client), night)] if night else []
    try:
        if engine.on_permanent:
            permanent.prove(places.permanent())
        points = engine.points().items()
    except GbsError as exc:
        log.warning("restore points are out of reach: %s", exc)
        return found
    return [*found, *(Night(name, engine.folder(name), manifest) for name, manifest in points if manifest is not None)]


@retryable("choose night", "choose night {wanted} of {client}", retries=0)
def choose_night(client: str, wanted: str) -> Night:
    """The night that `wanted` names; NothingToRecover with what there is when none fits."""
    night = choose(client, nights_of(client), wanted)
    if night.name == OVERNIGHT and (since := _held_since(client)) and night.manifest.id >= since:
        log.warning("nights of %s are held since %s: is the overnight copy what you want? gbs list held", client, since)
    return night


def _held_since(client: str) -> str | None:
    """The first night that is held, if the permanent store is there."""
    place = places.permanent()
    try:
        waiting = permanent.at(place, restore_points.held, place.path / slug(client))
    except StoreError:
        return None
    return waiting[0].night if waiting else None


@contextmanager
def opened(night: Night) -> Iterator[Path]:
    """The folder of a night; one that its engine must bring lies in the store while the block lasts.

    The caller holds the client's lock.
    """
    if night.folder is not None:
        yield night.folder
        return
    try:
        yield _bring(night)
    finally:
        places.engine_of(night.manifest.client).close(night.name)


@retryable("bring night", "bring night {night.manifest.id} of {night.manifest.client}", retries=1)
def _bring(night: Night) -> Path:
    """A night from its engine, in the store."""
    with reporting(log, f"bring {night.name} of {night.manifest.client}") as progress:
        return places.engine_of(night.manifest.client).open(night.name, progress.update)


@retryable("verify night", "verify night {night.manifest.id} of {night.manifest.client}", retries=0)
def verify(night: Night, folder: Path) -> NightManifest:
    """IntegrityError unless every file of the night, which lies in the folder, has the sha256 that its listing says."""
    verify_night(folder, night.manifest)
    with reporting(log, f"verify night {night.manifest.id}") as progress:
        verify_listing(folder / "data", folder / LISTING, lambda done: progress.update(done, night.manifest.size_bytes))
    return night.manifest
