"""Stage 2: a client's overnight copy becomes a restore point in the permanent store."""

import logging
from collections.abc import Sequence
from pathlib import Path

from tasks import places
from tasks.drivers import permanent, rsnapshot
from tasks.drivers.permanent import PermanentPlace
from tasks.drivers.progress import reporting
from tasks.drivers.store import Store, keeps_nanoseconds, verify_night
from tasks.errors import GbsError, Locked, NothingToRecover
from tasks.model.inventory import Policy
from tasks.model.names import slug
from tasks.model.retention import Move
from tasks.retryable import retryable

log = logging.getLogger(__name__)


def root_of(client: str) -> Path:
    """The client's rsnapshot root in the permanent store."""
    return places.permanent().path / slug(client)


@retryable("prove permanent store", retries=1)
def prove() -> None:
    """StoreNotMounted unless the permanent store is the right one, mounted and writable."""
    permanent.prove(places.permanent())


@retryable("sync restore point", "sync {client}")
def sync(client: str) -> str:
    """The overnight copy, verified, in the client's `.sync`; returns the night's id."""
    _, policy = places.system_of(client)
    store = places.store()
    night = store.night_of(client)
    if night is None:
        raise NothingToRecover(f"client {client}", f"{store.overnight(client)} has no published night")
    place = places.permanent()
    permanent.prove(place)
    verify_night(store.overnight(client), night)
    with reporting(log, f"sync {client}"):
        config = _config(client, place, store, policy)
        rsnapshot.sync(place, config, store.overnight(client), root_of(client), policy.transfer_deadline_s)
    return night.id


@retryable("rotate restore points", "rotate {client}", retries=0)
def rotate(client: str) -> list[Move]:
    """Rotate as far as the fresh sync asks for, with reasons; [] when it holds nothing newer."""
    _, policy = places.system_of(client)
    place = places.permanent()
    permanent.prove(place)
    with reporting(log, f"rotate {client}"):
        moves = rsnapshot.rotate(place, root_of(client), policy.rules, policy.trash_days)
    for move in moves:
        log.info("%s: %s becomes %s: %s", client, move.point, move.to or "trash", move.reason)
    return moves


@retryable("remove given up", retries=0)
def tidy(clients: Sequence[str]) -> dict[str, str]:
    """Remove what rotations gave up and is due by now, one client after the other; what went wrong, by client."""
    place, problems = places.permanent(), dict[str, str]()
    with reporting(log, "remove given up") as progress:
        for number, client in enumerate(clients):
            progress.say(f"{client}, {number + 1} of {len(clients)}")
            try:
                with places.locked("client", client):
                    permanent.prove(place)
                    rsnapshot.tidy(place, root_of(client))
            except Locked:
                continue  # the next night does
            except GbsError as exc:
                problems[client] = str(exc)
    return problems


def _config(client: str, place: PermanentPlace, store: Store, policy: Policy) -> Path:
    folder = store.root / "rsnapshot"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{slug(client)}.conf"
    # GBS's own lock keeps two runs apart; a pid file of rsnapshot's that a killed run left would make it skip.
    lock = folder / f"{slug(client)}.pid"
    lock.unlink(missing_ok=True)
    night = store.night_of(client)
    config.write_text(
        rsnapshot.render_config(
            store.overnight(client),
            root_of(client),
            lock,
            policy.rules.retain,
            fake_super=night is not None and night.fake_super,
            whole_seconds=not permanent.at(place, keeps_nanoseconds, place.path),
        )
    )
    return config
