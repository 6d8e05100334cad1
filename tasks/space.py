"""How full the stores are, since when and until when, what saves room on them, and what each client costs.

Needs no Prefect. A level is cheap to note; what lies in the stores is walked only when that is asked for.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from tasks.drivers import inventory_file, near_store, permanent, space
from tasks.drivers.permanent import PermanentPlace
from tasks.drivers.progress import reporting
from tasks.drivers.store import Store, read_model, write_model
from tasks.errors import GbsError, IntegrityError, StoreError
from tasks.model.inventory import Inventory
from tasks.model.manifest import NightCost
from tasks.model.names import slug
from tasks.model.room import Levels, Room, doubts, level_of, remarks
from tasks.model.space import Saving, Tally, Walked, savings, tally
from tasks.model.trend import Outlook, outlook

SOON_DAYS = 14
"""Full within so many days is worth a warning."""
STORE, PERMANENT = "store", "permanent"
IN_WORK = "(in work, trash, records)"
log = logging.getLogger(__name__)
Model = TypeVar("Model", Levels, Tally)
P = ParamSpec("P")
T = TypeVar("T")
Touch = Callable[..., Any]
"""Calls a function that touches a store: directly, or by the child that can be killed."""
Folders = dict[str, list[tuple[str, Path]]]
"""The folders of each owner, with what they are called."""


@dataclass(frozen=True)
class StoreSpace:
    """A store's room; `room` is None where it is out of reach, as `doubts` says."""

    name: str
    path: str
    room: Room | None
    reserve_bytes: int
    outlook: Outlook
    savings: tuple[Saving, ...]
    measured: datetime | None
    """When its folders were walked."""
    doubts: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class ClientSpace:
    """What a client, or something else that lies in the stores, costs; None is not measured."""

    owner: str
    each_bytes: int | None
    """Each of its copies by itself."""
    store_bytes: int | None
    """What would be free in the store without it."""
    permanent_bytes: int | None
    last_night: NightCost | None
    newest_point: str
    newest_point_bytes: int | None
    given_up_bytes: int
    """What only restore points in the trash hold: it is free soon."""


@dataclass(frozen=True)
class Survey:
    """The stores and who fills them."""

    stores: tuple[StoreSpace, ...]
    owners: tuple[ClientSpace, ...]

    @property
    def good(self) -> bool:
        """Whether nobody has to do anything about it now."""
        return not any(
            row.doubts or (row.outlook.days is not None and row.outlook.days < SOON_DAYS) for row in self.stores
        )


def note_levels(store: Store, place: PermanentPlace) -> list[str]:
    """Note how full both stores are now; what went wrong."""
    problems = []
    for name in (STORE, PERMANENT):
        try:
            _note(store, name, space.room(store.root) if name == STORE else _room_there(place))
        except (GbsError, OSError) as exc:
            problems.append(f"how full the {name} store is could not be noted: {exc}")
    return problems


def survey(*, deep: bool) -> Survey:
    """How full the stores are now, and what was measured last; with `deep` their folders are walked first."""
    declared = inventory_file.load()
    store, place = near_store.of(declared), permanent.place_of(declared.permanent)
    tallies: dict[str, Tally | None] = {}
    stores = []
    for name, path, reserve in ((STORE, store.root, declared.store.reserve_bytes), (PERMANENT, place.path, 0)):
        room, wrong = None, []
        try:
            room = space.room(path) if name == STORE else _room_there(place)
            if deep:
                _measure(declared, store, place, name, room)
        except (StoreError, OSError) as exc:
            wrong.append(str(exc))
        tallies[name] = measured = _read(store, f"measured-{name}.json", Tally)
        levels = _read(store, f"levels-{name}.json", Levels) or Levels()
        if room:
            levels = levels.with_one(level_of(room, datetime.now(UTC)))
        stores.append(
            StoreSpace(
                *(name, str(path), room, reserve, outlook(levels.levels, reserve)),
                savings=tuple(savings(room, measured)) if room else (),
                measured=measured.at if measured else None,
                doubts=(*wrong, *(doubts(room, reserve) if room else ())),
                remarks=tuple(remarks(room)) if room else (),
            )
        )
    return Survey(tuple(stores), tuple(_owners(declared, store, tallies)))


def _room_there(place: PermanentPlace) -> Room:
    permanent.prove(place, permanent.LOOK_DEADLINE_S)
    return permanent.look(place, space.room, place.path)


def _note(store: Store, name: str, room: Room) -> None:
    kept = _read(store, f"levels-{name}.json", Levels) or Levels()
    write_model(store.space / f"levels-{name}.json", kept.with_one(level_of(room, datetime.now(UTC))))


def _read(store: Store, file: str, model: type[Model]) -> Model | None:
    try:
        return read_model(store.space / file, model)
    except IntegrityError as exc:
        log.warning("it is made anew: %s", exc)
        return None


def _measure(declared: Inventory, store: Store, place: PermanentPlace, name: str, room: Room) -> None:
    """Walk a store's folders, and keep what they come to."""
    _note(store, name, room)
    reflinks = room.fstype in space.REFLINKS
    touch: Touch = partial(permanent.at, place) if name == PERMANENT else _directly
    walks: list[Walked] = []
    with reporting(log, f"measure {name} store") as progress:
        found = _in_permanent(declared, place.path, touch) if name == PERMANENT else _in_store(declared, store)
        for number, (owner, folders) in enumerate(found.items()):
            progress.say(f"{owner}, {number + 1} of {len(found)}")
            walks.append(touch(space.walk, owner, folders, reflinks=reflinks))
    measured = tally(walks, datetime.now(UTC), reflinks_seen=reflinks)
    write_model(store.space / f"measured-{name}.json", measured)


def _directly(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return function(*args, **kwargs)


def _in_store(declared: Inventory, store: Store) -> Folders:
    """The folders of the store by whose they are: a client's images are its own, as its files are."""
    found = _images(declared, store.root / "images", _directly)
    overnight = store.root / "overnight"
    for name in space.names_in(overnight):
        found[IN_WORK if name.startswith(".") else _client(declared, name)].append((name, overnight / name))
    for name in space.names_in(store.root):
        if name not in ("images", "overnight"):
            whose = f"({name})" if name in ("templates", "devices", "server") else IN_WORK
            found[whose].append((name, store.root / name))
    return found


def _in_permanent(declared: Inventory, root: Path, touch: Touch) -> Folders:
    """The folders of the permanent store likewise; those that are no client's begin with an underscore."""
    found = _images(declared, root / "_images", touch)
    for name in touch(space.names_in, root):
        if name.startswith("."):
            found[IN_WORK].append((name, root / name))
        elif name.startswith("_") and name != "_images":
            found[f"({name[1:]})"].append((name, root / name))
        elif name != "_images":
            found[_client(declared, name)] += touch(space.point_folders, root / name)
    return found


def _images(declared: Inventory, root: Path, touch: Touch) -> Folders:
    found: Folders = defaultdict(list)
    vms = {slug(vm): client for vm, client in declared.vms.items()}
    for host in touch(space.names_in, root):
        for vm in touch(space.names_in, root / host):
            folder = root / host / vm
            images = touch(space.names_in, folder)
            found[vms.get(vm, f"VM {vm} (no client's)")] += [
                (image if image.startswith(".") else f"image {image}", folder / image) for image in images
            ]
    return found


def _client(declared: Inventory, name: str) -> str:
    known = {slug(client): client for client in declared.systems}
    return known.get(name, f"{name} (not in the inventory)")


def _owners(declared: Inventory, store: Store, tallies: dict[str, Tally | None]) -> Iterator[ClientSpace]:
    """Every client, and what else was found; the dearest first."""
    costs = {name: {cost.owner: cost for cost in found.costs} if found else None for name, found in tallies.items()}
    here, there = costs[STORE], costs[PERMANENT]
    rows = []
    for owner in dict.fromkeys((*declared.systems, *(here or ()), *(there or ()))):
        near, far = (here or {}).get(owner), (there or {}).get(owner)
        night = store.night_of(owner) if owner in declared.systems else None
        found = [cost for cost in (near, far) if cost]
        rows.append(
            ClientSpace(
                owner,
                each_bytes=sum(cost.each_bytes for cost in found) if found else None,
                store_bytes=None if here is None else near.own_bytes if near else 0,
                permanent_bytes=None if there is None else far.own_bytes if far else 0,
                last_night=night.costs[-1] if night and night.costs and night.costs[-1].night == night.id else None,
                newest_point=far.newest if far else "",
                newest_point_bytes=far.newest_bytes if far else None,
                given_up_bytes=far.given_up_bytes if far else 0,
            )
        )
    yield from sorted(rows, key=lambda row: -((row.store_bytes or 0) + (row.permanent_bytes or 0)))
