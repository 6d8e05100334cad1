"""Restore points and replicas as retention sees them: what it does with each and why; pins. Needs no Prefect."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from tasks.drivers import (
    inventory_file,
    kept_replicas,
    lock,
    near_store,
    originals,
    permanent,
    restore_points,
    store_clock,
)
from tasks.drivers.engines.chosen import engine_of
from tasks.drivers.store_clock import Clock
from tasks.errors import ConfigError, UnknownName
from tasks.model.inventory import Policy
from tasks.model.names import new_id
from tasks.model.night_choice import Night, choose
from tasks.model.replica_retention import Verdict
from tasks.model.retention import SYNC, Pin, Point, after, plan


@dataclass(frozen=True)
class Explained:
    """A restore point, and what the next night does with it."""

    point: Point
    next: str


def explain(client: str) -> list[Explained]:
    """Every restore point of a client, newest first; as if a night that went well ended now.

    Nothing is written: of the clock is said what is known without asking the permanent store for its own.
    """
    declared = inventory_file.load()
    engine, place = engine_of(declared, client), permanent.place_of(declared.permanent)
    rules, now = declared.policy_of(declared.systems[client]).rules, datetime.now(UTC)
    permanent.prove(place, permanent.LOOK_DEADLINE_S)
    points = engine.retained()
    if not engine.forgets:
        usual = "stays as long as its backup application keeps it"
        return [Explained(point, f"{usual}; {point.pin.reason}" if point.pin else usual) for point in points]
    doubt = permanent.look(place, store_clock.known, place.path, now).doubt
    moves = {move.point: move for move in plan(points, rules, now, now, doubt=doubt)}
    rows = []
    for point in points:
        move = moves.get(point.name)
        if move is None:
            held = f", {point.pin.text}" if point.pin else ""
            rows.append(Explained(point, f"stays{held}"))
        else:
            rows.append(Explained(point, f"becomes {move.to}: {move.reason}" if move.to else f"goes: {move.reason}"))
    return rows


def explain_images(vm: str | None) -> dict[str, list[Verdict]]:
    """Every replica of a VM's images, or of all VMs', newest first; and its images that have none.

    Raises UnknownName for a VM of which there is neither.
    """
    declared = inventory_file.load()
    store, place = near_store.of(declared), permanent.place_of(declared.permanent)
    permanent.prove(place, permanent.LOOK_DEADLINE_S)
    known = sorted({*originals.vms(store), *permanent.look(place, originals.vms_there, place.path)})
    if vm not in (None, *known):
        raise UnknownName("VM with images", vm, known)
    chosen, now = known if vm is None else [vm], datetime.now(UTC)
    doubt = permanent.look(place, store_clock.known, place.path, now).doubt
    return {name: kept_replicas.verdicts(declared, store, place, name, now, doubt, wanted=True) for name in chosen}


def pin_image(vm: str, wanted: str, until: date, reason: str) -> str:
    """Keep the replica of an image (an id, or `newest`) until the end of a day; its id.

    Raises ConfigError when the day is over, NothingToRecover when there is no such replica, StoreNotMounted.
    """
    _require_to_come(until)
    return _pin_image(vm, wanted, lambda image: Pin(night=image, until=until, reason=reason))


def unpin_image(vm: str, wanted: str) -> str:
    """Leave the replica of an image to retention again; as `pin_image`."""
    return _pin_image(vm, wanted, lambda _: None)


def _pin_image(vm: str, wanted: str, made: Callable[[str], Pin | None]) -> str:
    declared = inventory_file.load()
    store, place = near_store.of(declared), permanent.place_of(declared.permanent)
    with lock.turn(store.lock("image-pins", vm), f"the pins of images of {vm}"):
        permanent.prove(place)
        chosen = originals.choose(permanent.at(place, originals.images_there, place.path, vm), wanted, vm, place.path)
        kept_replicas.pin(place, chosen.folder, made(chosen.id))
    return chosen.id


def clock(*, confirm: bool) -> Clock:
    """The clock that retention goes by; with `confirm` it is right as it is now, whatever was seen before."""
    place = permanent.place_of(inventory_file.load().permanent)
    permanent.prove(place, permanent.LOOK_DEADLINE_S)
    return permanent.look(place, store_clock.confirm if confirm else store_clock.read, place.path, datetime.now(UTC))


def simulate(policy: str, nights: int, every_days: int) -> list[Point]:
    """What a policy of the inventory has kept after so many nights that went well, `every_days` apart.

    Raises UnknownName when there is no such policy.
    """
    declared = inventory_file.load()
    if policy != "default" and policy not in declared.policies:
        raise UnknownName("policy", policy, ["default", *declared.policies])
    rules = declared.policies.get(policy, Policy()).rules
    points: list[Point] = []
    ends = datetime.now(UTC).replace(microsecond=0)
    for back in range((nights - 1) * every_days, -1, -every_days):
        synced = ends - timedelta(days=back)
        points = after(points, plan(points, rules, synced, synced), Point(SYNC, new_id(synced), synced))
    return sorted(points, key=lambda point: point.night or "", reverse=True)


def pin(client: str, wanted: str, until: date, reason: str) -> Night:
    """Keep the restore point that `wanted` names (a point, a night, a date) until the end of a day.

    Raises ConfigError when the day is over or the engine keeps what it likes, NothingToRecover when there is no such
    point, StoreNotMounted, Locked when points are given up by the pins meanwhile for too long.
    """
    _require_to_come(until)
    return _pin(client, wanted, lambda night: Pin(night=night, until=until, reason=reason))


def _require_to_come(until: date) -> None:
    if until < datetime.now(UTC).date():
        raise ConfigError(f"{until} is over", "--until", "give a day to come")


def unpin(client: str, wanted: str) -> Night:
    """Leave a restore point to retention again; as `pin`."""
    return _pin(client, wanted, lambda _: None)


def _pin(client: str, wanted: str, made: Callable[[str], Pin | None]) -> Night:
    declared = inventory_file.load()
    engine = engine_of(declared, client)
    if not engine.forgets:
        policy = declared.systems[client].policy
        raise ConfigError("its backup application decides what is kept", f"policy {policy}", "keep the night there")
    place, store, root = engine.ground.place, engine.ground.store, engine.ground.root
    with lock.turn(store.lock("pins", client), f"the pins of client {client}"):
        permanent.prove(place)
        nights = [Night(name, engine.folder(name), night) for name, night in engine.points().items() if night]
        night = choose(client, nights, wanted)
        permanent.at(place, restore_points.pin, root, made(night.manifest.id), night.manifest.id)
    return night
