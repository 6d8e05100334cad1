"""Nights that are held, and an operator's word about them. Needs no Prefect."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.drivers import held_nights, inventory_file, lock, permanent, store_clock
from tasks.drivers.permanent import PermanentPlace
from tasks.drivers.store import Store
from tasks.errors import UnknownName
from tasks.model.anomaly import Decision
from tasks.model.inventory import Inventory, Policy
from tasks.model.names import slug


def accept(client: str, night: str | None, reason: str, dry_run: bool = False) -> Decision:
    """Make a held night of a client (by default the newest) its newest restore point; see `held_nights.accept`.

    Raises UnknownName, Locked while a run works on the client, StoreNotMounted, ClockDoubted.
    """
    declared = inventory_file.load()
    with _undisturbed(declared, client) as (place, root, policy):
        return permanent.at(
            place, held_nights.accept, root, night, reason, policy.rules, policy.trash_days, dry_run=dry_run
        )


def reject(client: str, night: str | None, reason: str, dry_run: bool = False) -> Decision:
    """Put a held night of a client, by default all of them, into the trash; errors as of `accept`."""
    declared = inventory_file.load()
    with _undisturbed(declared, client) as (place, root, policy):
        return permanent.at(place, held_nights.reject, root, night, reason, policy.trash_days, dry_run=dry_run)


@contextmanager
def _undisturbed(declared: Inventory, client: str) -> Iterator[tuple[PermanentPlace, Path, Policy]]:
    """The client's root in the permanent store, while no run works on it."""
    if client not in declared.systems:
        raise UnknownName("client", client, list(declared.systems))
    place = permanent.place_of(declared.permanent)
    with lock.hold(Store(Path(declared.store.path)).lock("client", client), f"client {client}"):
        permanent.prove(place)
        store_clock.require(place)
        yield place, place.path / slug(client), declared.policy_of(declared.systems[client])
