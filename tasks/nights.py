"""The nights of a client that can be recovered: the overnight copy and the restore points."""

import logging

from tasks import places
from tasks.drivers import permanent, restore_points
from tasks.drivers.digest import verify_listing
from tasks.drivers.progress import reporting
from tasks.drivers.store import verify_night
from tasks.errors import IntegrityError, StoreError
from tasks.model.manifest import LISTING, NightManifest
from tasks.model.names import slug
from tasks.model.night_choice import OVERNIGHT, Night, choose
from tasks.retryable import retryable

log = logging.getLogger(__name__)


def nights_of(client: str) -> list[Night]:
    """Every night with a manifest: the overnight copy, then the restore points if the permanent store is there."""
    store, place = places.store(), places.permanent()
    night = store.night_of(client)
    found = [Night(OVERNIGHT, store.overnight(client), night)] if night else []
    root = place.path / slug(client)
    try:
        permanent.prove(place)
        points = permanent.at(place, restore_points.points, root).items()
    except (StoreError, IntegrityError) as exc:
        log.warning("restore points are out of reach: %s", exc)
        return found
    return [*found, *(Night(name, root / name, manifest) for name, manifest in points if manifest is not None)]


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


@retryable("verify night", "verify night {night.manifest.id} of {night.manifest.client}", retries=0)
def verify(night: Night) -> NightManifest:
    """IntegrityError unless every file of the night has the sha256 that its listing says."""
    verify_night(night.folder, night.manifest)
    with reporting(log, f"verify night {night.manifest.id}") as progress:
        verify_listing(
            night.folder / "data",
            night.folder / LISTING,
            lambda done: progress.update(done, night.manifest.size_bytes),
        )
    return night.manifest
