"""Stage 2: a client's overnight copy becomes a restore point in the permanent store."""

import logging
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks import places
from tasks.drivers import held_nights, permanent, restore_points, store_clock
from tasks.drivers.held_nights import Braked
from tasks.drivers.point_check import Checked
from tasks.drivers.progress import reporting
from tasks.drivers.store import verify_night
from tasks.errors import (
    GbsError,
    IntegrityError,
    Locked,
    NightHeld,
    NothingToRecover,
    StoreError,
    StoreNotMounted,
    StoreSilent,
)
from tasks.model.names import one_line, slug
from tasks.model.retention import Move, Reading
from tasks.retryable import retryable

MOST = 100
"""So many damaged files of a night are noted by name."""
TIDIED_AT_ONCE = 8
"""As many clients as a night works on."""
log = logging.getLogger(__name__)


def root_of(client: str) -> Path:
    """The client's folder of the permanent store: rsnapshot's root, and what every engine notes there."""
    return places.permanent().path / slug(client)


@dataclass(frozen=True)
class Synced:
    """The night that was synced, what its engine had to say, and what becomes of it; None where nobody asks."""

    night: str
    warnings: tuple[str, ...] = ()
    braked: Braked | None = None


@retryable("sync restore point", "sync {client}")
def sync(client: str) -> Synced:
    """The overnight copy, verified, in the client's engine, stamped and judged; no restore point before it rotates.

    Judged in the same task: a fleet's night feels each one, and to sync again what is there costs little.
    """
    store, engine = places.store(), places.engine_of(client)
    permanent.prove(places.permanent())
    night = store.night_of(client)
    if night is None:
        raise NothingToRecover(f"client {client}", f"{store.overnight(client)} has no published night")
    verify_night(store.overnight(client), night)
    with reporting(log, f"sync {client}") as progress:
        warnings = engine.sync(night, progress.update)
        _, policy = places.system_of(client)
        return Synced(night.id, warnings, None if policy.brake == "off" else held_nights.brake(engine))


def brake(client: str, synced: Synced) -> list[str]:
    """What somebody should know of the fresh sync before it rotates, a line each; NightHeld when it must not."""
    found = synced.braked
    if found is None:
        return []
    reasons = ", ".join(found.reasons)
    if found.change is not None:
        log.info("%s: %s", client, found.change.text)
    if found.held and found.change is not None:
        gone = "".join(f"; of those held before, {one} went to the trash" for one in found.given_up)
        kept = "is pinned" if places.engine_of(client).forgets else "only its backup application can keep"
        raise NightHeld(found.change.night, f"{reasons}{gone}", found.change.against, shlex.quote(client), kept)
    return [
        *([f"it is not like the nights before: {reasons}"] if reasons else []),
        *(f"it was not compared with {one}, whose listing is damaged: gbs verify points" for one in found.damaged),
        *(f"night {one} is held: gbs accept|reject {shlex.quote(client)} {one} --reason …" for one in found.waiting),
    ]


@retryable("rotate restore points", "rotate {client}", retries=0)
def rotate(client: str) -> list[Move]:
    """Rotate as far as the fresh sync asks for, with reasons; [] when it holds nothing newer."""
    with reporting(log, f"rotate {client}"), places.pins_turn(client):
        permanent.prove(places.permanent())
        moves = places.engine_of(client).rotate()
    for move in moves:
        log.info("%s: %s becomes %s: %s", client, move.point, move.to or "trash", move.reason)
    return moves


@retryable("verify restore points", "verify restore points of {client}", retries=0)
def verify(client: str, percent: float) -> list[Checked]:
    """Read a client's restore points where they lie, heal what is damaged, note what was found in the store.

    Raises IntegrityError for the first that stays damaged, when all have been read.
    """
    place, engine, now = places.permanent(), places.engine_of(client), datetime.now(UTC)
    permanent.prove(place)
    with reporting(log, f"verify restore points of {client}"):
        found = engine.verify(percent)
    left = {row.point: [path for path in row.damaged if path not in row.healed] for row in found}
    nights = {row.night: Reading(at=now, percent=percent, damaged=tuple(left[row.point][:MOST])) for row in found}
    for row in found:
        for path in row.healed:
            log.warning("%s %s: %s was damaged and is healed by a good copy", client, row.point, one_line(path))
    damage = next((_damage(engine.where(point), paths) for point, paths in left.items() if paths), None)
    try:
        permanent.at(place, restore_points.note, root_of(client), nights, [row.night for row in found if row.night])
    except StoreError as exc:
        if damage is None:
            raise
        raise damage from exc
    if damage is not None:
        raise damage
    return found


def _damage(where: str, paths: Sequence[str]) -> IntegrityError:
    others = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
    return IntegrityError(f"{where}: {one_line(paths[0])}{others}", "what its listing says", "another")


@retryable("remove given up", retries=0)
def tidy(clients: Sequence[str]) -> list[str]:
    """Remove what rotations gave up and is due by now, clients side by side; what went wrong.

    Nothing is removed while the clock is in doubt. A store that does not answer is told once.
    """
    try:
        store_clock.require(places.permanent())
    except GbsError as exc:
        return [str(exc)]
    with reporting(log, "remove given up") as progress, ThreadPoolExecutor(TIDIED_AT_ONCE) as pool:
        # Each in a copy of this thread's context, as a task runner would: settings are kept there.
        tidied = [pool.submit(copy_context().run, _tidy, client) for client in clients]
        problems = list[str]()
        try:
            for number, (client, future) in enumerate(zip(clients, tidied, strict=True)):
                progress.say(f"{client}, {number + 1} of {len(clients)}")
                problems += future.result()
        except (StoreSilent, StoreNotMounted) as exc:
            problems.append(str(exc))
        finally:
            pool.shutdown(cancel_futures=True)
    return problems


def _tidy(client: str) -> list[str]:
    try:
        with places.locked("client", client):
            permanent.prove(places.permanent())
            places.engine_of(client).tidy()
    except Locked:
        return []  # the next night does
    except (StoreSilent, StoreNotMounted):
        raise
    except GbsError as exc:
        return [f"{client}: {exc}"]
    return []
