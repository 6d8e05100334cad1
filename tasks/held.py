"""Nights that are held, and an operator's word about them. Needs no Prefect."""

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.drivers import held_nights, inventory_file, lock, store_clock
from tasks.drivers.engines import Engine
from tasks.drivers.engines.chosen import engine_of
from tasks.model.anomaly import Decision


def accept(client: str, night: str | None, reason: str, dry_run: bool = False) -> Decision:
    """Make a held night of a client (by default the newest) its newest restore point; see `held_nights.accept`.

    Raises UnknownName, Locked while a run works on the client, StoreNotMounted, ClockDoubted.
    """
    with _undisturbed(client) as engine:
        return held_nights.accept(engine, night, reason, dry_run)


def reject(client: str, night: str | None, reason: str, dry_run: bool = False) -> Decision:
    """Put a held night of a client, by default all of them, into the trash; errors as of `accept`."""
    with _undisturbed(client) as engine:
        return held_nights.reject(engine, night, reason, dry_run)


@contextmanager
def _undisturbed(client: str) -> Iterator[Engine]:
    """What keeps the client's restore points, while no run works on it and the clock can be believed."""
    engine = engine_of(inventory_file.load(), client)
    store = engine.ground.store
    with (
        lock.hold(store.lock("client", client), f"client {client}"),
        lock.turn(store.lock("pins", client), f"the pins of client {client}"),
    ):
        store_clock.require(engine.ground.place)
        yield engine
