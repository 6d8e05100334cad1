"""What there is, read from the stores alone: protection per client, nights, images. Needs no Prefect run."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from tasks.drivers import (
    definitions,
    instant_records,
    inventory_file,
    near_store,
    permanent,
    recovery_put,
    restore_points,
)
from tasks.drivers.drill_records import drills_of, last_proven, unfinished
from tasks.drivers.engines.chosen import engine_of
from tasks.drivers.store import Store, read_model
from tasks.errors import GbsError, NothingToRecover, StoreError, UnknownName
from tasks.model.anomaly import HeldNight
from tasks.model.drill import Drilled, UnfinishedDrill
from tasks.model.facts import Facts
from tasks.model.instant import InstantRow
from tasks.model.inventory import Inventory
from tasks.model.inventory_engines import RSNAPSHOT
from tasks.model.inventory_systems import Client
from tasks.model.manifest import TEMPLATE, ImageManifest, NightManifest, TemplateManifest
from tasks.model.names import slug
from tasks.model.night_choice import OVERNIGHT, Night
from tasks.model.outcome import Outcome, StageResult, combined
from tasks.model.recovery_record import what_to_do
from tasks.model.report import Report
from tasks.model.shape import Point, compare, shape_of_facts

ASKED_AT_ONCE = 4
"""Repositories, each by a program that takes a second of a processor to open one."""
Kept = dict[str, dict[str, NightManifest | None]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Protection:
    """How well a client is protected now."""

    client: str
    vm: str | None
    outcome: str
    reasons: tuple[str, ...]
    last_night: datetime | None
    size_bytes: int
    points: int | None
    """None when the permanent store is out of reach."""
    newest_point: str
    image: datetime | None
    proven: datetime | None = None
    """When a drill last showed that the VM can be recovered."""
    held: tuple[str, ...] = ()
    """Nights that wait for an operator's word."""


@dataclass(frozen=True)
class Protections:
    """How well everything is protected; `out_of_reach` says what is wrong with the permanent store, and since when."""

    rows: tuple[Protection, ...]
    out_of_reach: str | None = None


def instant_vms() -> list[InstantRow]:
    """The VMs that still run from the store."""
    return instant_records.rows(_store(inventory_file.load()))


def interrupted_recoveries() -> list[str]:
    """Which recoveries were cut off, and what to do about each."""
    declared = inventory_file.load()
    records = recovery_put.interrupted(_store(declared))
    return [what_to_do(record, physical=record.vm not in declared.vms) for record in records]


def protections() -> Protections:
    """One row per client and KVM host of the inventory."""
    declared = inventory_file.load()
    store, last = _store(declared), latest_results(_store(declared))
    rows, out_of_reach = [], None
    waiting: dict[str, list[HeldNight]] = {}
    points: Kept = {}
    unread: dict[str, str] = {}
    try:
        waiting = held()
        points, unread = _restore_points(declared, [*declared.systems])
    except StoreError as exc:
        answered = [
            result.ended
            for (_, stage), result in last.items()
            if stage == "permanent" and (result.produced or result.outcome is Outcome.OK)
        ]
        since = f"it last did at {max(answered):%Y-%m-%d %H:%M} UTC" if answered else "no run is known in which it did"
        out_of_reach = f"{exc}; {since}"
    for name, system in declared.systems.items():
        night, kept = store.night_of(name), points.get(name, {})
        stages = [result for (client, _), result in last.items() if client == name]
        vm = system.vm if isinstance(system, Client) else None
        taken = store.images_of(vm) if vm else []
        newest = next(iter(kept.values()), None)
        rows.append(
            Protection(
                client=name,
                vm=vm,
                outcome=(combined(stage.outcome for stage in stages) if stages else Outcome.MISSED).value,
                reasons=(*_reasons(stages, night is None), *([unread[name]] if name in unread else [])),
                last_night=night.ended if night else None,
                size_bytes=night.size_bytes if night else 0,
                points=None if out_of_reach or name in unread else len(kept),
                newest_point=newest.id if newest else "",
                image=taken[0][1].instant if taken else None,
                proven=proven.ended if vm and (proven := last_proven(store, vm)) else None,
                held=tuple(one.night for one in waiting.get(name, ())),
            )
        )
    return Protections(tuple(rows), out_of_reach)


def _restore_points(declared: Inventory, clients: Sequence[str]) -> tuple[Kept, dict[str, str]]:
    """The restore points of clients, and whose engine cannot be asked and why.

    StoreError when the permanent store is not there or is silent for seconds.
    """
    place = permanent.place_of(declared.permanent)
    permanent.prove(place, permanent.LOOK_DEADLINE_S)
    by_rsnapshot, others = list[str](), list[str]()
    for client in clients:
        usual = declared.policy_of(declared.systems[client]).engine == RSNAPSHOT
        (by_rsnapshot if usual else others).append(client)
    found = permanent.look(
        place, restore_points.points_of, {client: place.path / slug(client) for client in by_rsnapshot}
    )
    unread: dict[str, str] = {}

    def ask(client: str) -> None:
        try:
            found[client] = engine_of(declared, client).points()
        except GbsError as exc:
            unread[client], found[client] = f"restore points: {exc}", {}

    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        list(pool.map(ask, others))
    return found, unread


def _reasons(stages: list[StageResult], never: bool) -> tuple[str, ...]:
    if not stages and never:
        return ("it was never backed up: gbs run nightly",)
    bad = [stage for stage in stages if stage.outcome is not Outcome.SKIPPED]
    return tuple(f"{stage.stage}: {reason}" for stage in bad for reason in stage.reasons)


def nights(client: str | None = None) -> list[Night]:
    """The overnight copies and restore points with a manifest, of one client or all."""
    declared = inventory_file.load()
    if client is not None and client not in declared.systems:
        raise UnknownName("client", client, list(declared.systems))
    store, found = _store(declared), []
    names = [client] if client else [*declared.systems]
    kept, unread = _restore_points(declared, names)
    for reason in unread.values():
        log.warning("%s", reason)
    for name in names:
        night, engine = store.night_of(name), engine_of(declared, name)
        if night is not None:
            found.append(Night(OVERNIGHT, store.overnight(name), night))
        found += [Night(point, engine.folder(point), manifest) for point, manifest in kept[name].items() if manifest]
    return found


def held(client: str | None = None) -> dict[str, list[HeldNight]]:
    """The nights that are held, of one client or all, oldest first; errors as `nights`."""
    declared = inventory_file.load()
    if client is not None and client not in declared.systems:
        raise UnknownName("client", client, list(declared.systems))
    place = permanent.place_of(declared.permanent)
    permanent.prove(place, permanent.LOOK_DEADLINE_S)
    roots = {name: place.path / slug(name) for name in ([client] if client else declared.systems)}
    return permanent.look(place, restore_points.held_of, roots)


def images() -> list[ImageManifest]:
    """Every published image."""
    return [manifest for _, manifest in _store(inventory_file.load()).all_images()]


def drills(vm: str | None = None) -> list[Drilled]:
    """What drills showed, of one VM or of all, newest first."""
    declared = inventory_file.load()
    if vm is not None and vm not in declared.vms:
        raise UnknownName("VM", vm, list(declared.vms))
    return [found for name in ([vm] if vm else declared.vms) for found in drills_of(_store(declared), name)]


def unfinished_drills(vm: str | None = None) -> list[UnfinishedDrill]:
    """The drills, of one VM or of all, that run now or were interrupted."""
    return [one for one in unfinished(_store(inventory_file.load())) if vm in (None, one.vm)]


@dataclass(frozen=True)
class FoundDisk:
    """A disk of a VM that was found, and the newest image that holds it."""

    target: str
    device: str
    type: str
    format: str | None
    source: str | None
    image: str


@dataclass(frozen=True)
class FoundVm:
    """A VM in the backup data of a KVM host."""

    vm: str
    uuid: str
    kvm_host: str
    night: str
    images: int
    disks: tuple[FoundDisk, ...]


def find_vm(name: str) -> FoundVm:
    """The newest verified definition of a VM by name or UUID, with every host switched off; see `definitions.find`."""
    declared = inventory_file.load()
    store = _store(declared)
    hosts = {host: section.definitions for host, section in declared.kvm_hosts.items()}
    found = definitions.find(store, hosts, name)
    images = [image for _, image in store.images_of(found.domain.name) if image.uuid == found.domain.uuid]
    newest = {disk.target: image.id for image in reversed(images) for disk in image.disks}
    disks = tuple(
        FoundDisk(disk.target, disk.device, disk.type, disk.format, disk.source, newest.get(disk.target, ""))
        for disk in found.domain.disks
    )
    return FoundVm(found.domain.name, found.domain.uuid, found.kvm_host, found.night, len(images), disks)


@dataclass(frozen=True)
class Match:
    """A template beside a client, point by point."""

    template: TemplateManifest
    points: tuple[Point, ...]

    @property
    def serves(self) -> bool:
        """Whether it agrees in every point."""
        return all(point.same for point in self.points)


def templates() -> list[TemplateManifest]:
    """Every template, by flavour."""
    paths = sorted(_store(inventory_file.load()).templates.glob(f"*/[!.]*/{TEMPLATE}"))
    return [found for path in paths if (found := read_model(path, TemplateManifest)) is not None]


def match_templates(client: str) -> list[Match]:
    """Every template beside the client as of its last night, those that serve it first.

    Raises UnknownName, and NothingToRecover for a client that has no night or when there is no template.
    """
    declared = inventory_file.load()
    if client not in declared.systems:
        raise UnknownName("client", client, list(declared.systems))
    facts = read_model(_store(declared).overnight(client) / "facts.json", Facts)
    if facts is None:
        raise NothingToRecover(f"client {client}", "it was never backed up, so the shape of its disks is not known")
    found = [Match(template, tuple(compare(template.shape, shape_of_facts(facts)))) for template in templates()]
    if not found:
        raise NothingToRecover(f"client {client}", "there is no template; make one: gbs image template add IMAGE")
    return sorted(found, key=lambda match: (not match.serves, match.template.vm, match.template.image))


def latest_results(store: Store) -> dict[tuple[str, str], StageResult]:
    """The last result of every client and stage, from the reports in the store."""
    found: dict[tuple[str, str], StageResult] = {}
    for path in sorted(store.reports.glob("*.json"), key=lambda path: path.stat().st_mtime):
        report = read_model(path, Report)
        for result in report.results if report else ():
            found[result.client, result.stage] = result
    return found


def _store(declared: Inventory) -> Store:
    return near_store.of(declared)
