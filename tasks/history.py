"""Restore points as retention sees them: what it does with each and why; pinned nights. Needs no Prefect."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from tasks.drivers import inventory_file, permanent, restore_points
from tasks.drivers.permanent import PermanentPlace
from tasks.errors import ConfigError, UnknownName
from tasks.model.inventory import Inventory, Policy
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
    place, root = _root(declared, client)
    rules, now = declared.policy_of(declared.systems[client]).rules, datetime.now(UTC)
    permanent.prove(place, permanent.LOOK_DEADLINE_S)
    points = permanent.look(place, restore_points.retained, root)
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

    Raises ConfigError when the day is over, NothingToRecover when there is no such point, StoreNotMounted.
    """
    if until < datetime.now(UTC).date():
        raise ConfigError(f"{until} is over", "--until", "give a day to come")
    place, root = _root(inventory_file.load(), client)
    permanent.prove(place)
    night = _chosen(place, root, client, wanted)
    permanent.at(
        place, restore_points.pin, root, Pin(night=night.manifest.id, until=until, reason=reason), night.manifest.id
    )
    return night


def unpin(client: str, wanted: str) -> Night:
    """Leave a restore point to retention again; as `pin`."""
    place, root = _root(inventory_file.load(), client)
    permanent.prove(place)
    night = _chosen(place, root, client, wanted)
    permanent.at(place, restore_points.pin, root, None, night.manifest.id)
    return night


def _chosen(place: PermanentPlace, root: Path, client: str, wanted: str) -> Night:
    found = permanent.look(place, restore_points.points, root)
    return choose(client, [Night(name, root / name, manifest) for name, manifest in found.items() if manifest], wanted)


def _root(declared: Inventory, client: str) -> tuple[PermanentPlace, Path]:
    if client not in declared.systems:
        raise UnknownName("client", client, list(declared.systems))
    place = permanent.place_of(declared.permanent)
    return place, place.path / slug(client)
