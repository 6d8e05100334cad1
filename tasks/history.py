"""Restore points as retention sees them: what it does with each and why; pinned nights. Needs no Prefect."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from tasks.drivers import inventory_file, permanent, restore_points
from tasks.drivers.engines.chosen import engine_of
from tasks.drivers.permanent import PermanentPlace
from tasks.errors import ConfigError, UnknownName
from tasks.model.inventory import Policy
from tasks.model.names import new_id, slug
from tasks.model.night_choice import Night, choose
from tasks.model.retention import SYNC, Pin, Point, after, plan


@dataclass(frozen=True)
class Explained:
    """A restore point, and what the next night does with it."""

    point: Point
    next: str


def explain(client: str) -> list[Explained]:
    """Every restore point of a client, newest first; as if a night that went well ended now."""
    declared = inventory_file.load()
    engine, place = engine_of(declared, client), permanent.place_of(declared.permanent)
    rules, now = declared.policy_of(declared.systems[client]).rules, datetime.now(UTC)
    permanent.prove(place, permanent.LOOK_DEADLINE_S)
    points = engine.retained()
    if not engine.forgets:
        usual = "stays as long as its backup application keeps it"
        return [Explained(point, f"{usual}; {point.pin.reason}" if point.pin else usual) for point in points]
    moves = {move.point: move for move in plan(points, rules, now, now)}
    rows = []
    for point in points:
        move = moves.get(point.name)
        if move is None:
            held = f", {point.pin.text}" if point.pin else ""
            rows.append(Explained(point, f"stays{held}"))
        else:
            rows.append(Explained(point, f"becomes {move.to}: {move.reason}" if move.to else f"goes: {move.reason}"))
    return rows


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
    point, StoreNotMounted.
    """
    if until < datetime.now(UTC).date():
        raise ConfigError(f"{until} is over", "--until", "give a day to come")
    place, root, night = _chosen(client, wanted)
    permanent.at(
        place, restore_points.pin, root, Pin(night=night.manifest.id, until=until, reason=reason), night.manifest.id
    )
    return night


def unpin(client: str, wanted: str) -> Night:
    """Leave a restore point to retention again; as `pin`."""
    place, root, night = _chosen(client, wanted)
    permanent.at(place, restore_points.pin, root, None, night.manifest.id)
    return night


def _chosen(client: str, wanted: str) -> tuple[PermanentPlace, Path, Night]:
    """A client's restore point, and where what is noted of it lies."""
    declared = inventory_file.load()
    engine, place = engine_of(declared, client), permanent.place_of(declared.permanent)
    if not engine.forgets:
        policy = declared.systems[client].policy
        raise ConfigError("its backup application decides what is kept", f"policy {policy}", "keep the night there")
    permanent.prove(place)
    found = engine.points()
    nights = [Night(name, engine.folder(name), night) for name, night in found.items() if night]
    return place, place.path / slug(client), choose(client, nights, wanted)
