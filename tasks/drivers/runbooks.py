"""What a runbook is made of, read from the stores and the inventory alone: needs no Prefect."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tasks.drivers import databases, definitions, permanent, restore_points
from tasks.drivers.engines import Engine
from tasks.drivers.engines.chosen import engine_of
from tasks.drivers.engines.command import CommandEngine
from tasks.drivers.engines.restic import ResticEngine
from tasks.drivers.permanent import PermanentPlace
from tasks.drivers.store import Store, listed_model, read_model, write_bytes
from tasks.errors import GbsError, IntegrityError, NothingToRecover, StoreError, UnknownName
from tasks.model.facts import Facts
from tasks.model.image_choice import Kept, newest_fitting
from tasks.model.inventory import Inventory
from tasks.model.inventory_databases import Database
from tasks.model.inventory_engines import filled
from tasks.model.inventory_systems import Client, System
from tasks.model.manifest import MANIFEST, DumpRecord, ImageManifest
from tasks.model.names import slug
from tasks.model.night_choice import OVERNIGHT, Night, choose
from tasks.model.replica import IMAGES, RUNBOOKS
from tasks.model.runbook import TARGET, Bringing, Place, Restore, Runbook
from tasks.model.runbook_script import render
from tasks.model.ssh_target import SshTarget

DEFINITION, FACTS = "domain.xml", "facts.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """What is to be brought back: `host` None is the KVM host that had it; `permanent` reads nothing of the store."""

    vm: str
    night: str = "latest"
    host: str | None = None
    permanent: bool = False


@dataclass(frozen=True)
class Stores:
    """What is read from."""

    declared: Inventory
    store: Store
    place: PermanentPlace


def gather(stores: Stores, wish: Wish, now: datetime) -> Runbook:
    """What brings the VM back, by the choice that a recovery makes: newest definition, night, fitting image.

    Of the permanent store alone, the definition is the image's own. Raises UnknownName, NothingToRecover, Ambiguous,
    IntegrityError, and of a permanent store that is needed and not there StoreError.
    """
    declared = stores.declared
    if wish.vm not in declared.vms:
        raise UnknownName("VM", wish.vm, list(declared.vms))
    name = declared.vms[wish.vm]
    client, engine = declared.clients[name], engine_of(declared, name, stores.store, stores.place)
    night = choose(name, _nights(stores, engine, name, wish), wish.night)
    folder, image, xml, had_it = _image(stores, wish, night)
    to = wish.host or had_it
    if to not in declared.kvm_hosts:
        raise UnknownName("KVM host", to, list(declared.kvm_hosts))
    host = declared.kvm_hosts[to]
    return Runbook(
        made=now,
        vm=wish.vm,
        client=name,
        xml=xml,
        store=str(stores.store.root),
        permanent=str(stores.place.path),
        image=image,
        image_place=_place(stores, folder),
        night=night.manifest,
        night_name=night.name,
        night_place=_place(stores, night.folder) if night.folder else None,
        bringing=None if night.folder else bringing(engine, night),
        facts=_facts(stores, name, night),
        host=_target(declared, to, host),
        libvirt_uri=host.libvirt_uri,
        image_folder=str(host.image_folder),
        guest=_target(declared, name, client) if client.ssh else None,
        boot_deadline_s=client.boot_deadline_s,
        restores=tuple(_restores(client, night.manifest.dumps)),
        probes=client.probes,
        warnings=tuple(_held(stores, night)),
        gaps=tuple(_undeclared(client, night.manifest.dumps)),
    )


def _image(stores: Stores, wish: Wish, night: Night) -> tuple[Path, ImageManifest, str, str]:
    """The image that the night fits, where it lies, the definition, and which KVM host had that."""
    if wish.permanent:
        replicas = permanent.at(stores.place, _replicas, stores.place.path, wish.vm)
        folder, image = newest_fitting(wish.vm, replicas, night.manifest, none=_no_image(wish, "permanent store"))
        return folder, image, permanent.at(stores.place, _text, folder / DEFINITION), image.kvm_host
    hosts = {host: section.definitions for host, section in stores.declared.kvm_hosts.items()}
    found = definitions.find(stores.store, hosts, wish.vm)
    images = stores.store.images_of(found.domain.name)
    folder, image = newest_fitting(wish.vm, images, night.manifest, none=_no_image(wish, "store"))
    return folder, image, found.xml, found.kvm_host


def _no_image(wish: Wish, where: str) -> str:
    take = f"gbs-kvmimg-get {wish.vm}" if where == "store" else "gbs run replicate"
    return (
        f"a runbook begins with an image of the VM itself, and the {where} has none; take one: {take}; "
        f"from a template only GBS can rebuild it: gbs recover vm {wish.vm}"
    )


def keep(stores: Stores, vm: str, now: datetime) -> Path:
    """Write the VM's runbook into the permanent store, of which alone it reads; errors as `gather`."""
    script = render(gather(stores, Wish(vm, permanent=True), now))
    path = stores.place.path / RUNBOOKS / f"{slug(vm)}.sh"
    permanent.at(stores.place, _write, path, script.encode("utf-8", "surrogateescape"))
    return path


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True, mode=0o700)
    write_bytes(path, content)


def _nights(stores: Stores, engine: Engine, client: str, wish: Wish) -> list[Night]:
    """The overnight copy unless it is lost, and the restore points; without the latter only where the former is."""
    night = None if wish.permanent else stores.store.night_of(client)
    found = [Night(OVERNIGHT, stores.store.overnight(client), night)] if night else []
    try:
        if engine.on_permanent or wish.permanent:
            permanent.prove(stores.place)
        points = engine.points().items()
    except GbsError as exc:
        if wish.permanent:
            raise
        log.warning("restore points are out of reach: %s", exc)
        return found
    return [*found, *(Night(name, engine.folder(name), kept) for name, kept in points if kept is not None)]


def _held(stores: Stores, night: Night) -> Iterator[str]:
    """That the overnight copy has what a held night is held for, if the permanent store is there to tell."""
    client = night.manifest.client
    try:
        waiting = permanent.at(stores.place, restore_points.held, stores.place.path / slug(client))
    except StoreError:
        return
    if waiting and night.name == OVERNIGHT and night.manifest.id >= waiting[0].night:
        since = waiting[0].night
        yield f"nights of {client} are held since {since}: is the overnight copy what you want? gbs list held"


def _replicas(root: Path, vm: str) -> list[Kept]:
    """The replicas of a VM's images, newest first."""
    found: list[Kept] = []
    for path in root.glob(f"{IMAGES}/*/{slug(vm)}/[!.]*/{MANIFEST}"):
        image = listed_model(path, ImageManifest)
        if image is not None and image.vm == vm:
            found.append((path.parent, image))
    return sorted(found, key=lambda kept: kept[1].id, reverse=True)


def _text(path: Path) -> str:
    return path.read_text("utf-8", "surrogateescape")


def _place(stores: Stores, folder: Path) -> Place:
    if folder.is_relative_to(stores.place.path):
        return Place("PERMANENT", folder.relative_to(stores.place.path).as_posix())
    return Place("STORE", folder.relative_to(stores.store.root).as_posix())


def bringing(engine: Engine, night: Night) -> Bringing:
    """The engine's own command for the night."""
    if isinstance(engine, ResticEngine):
        declared, copy = engine.declared, engine.arranged()[night.name]
        url = engine.where(night.name).removesuffix(f" {night.name}")
        return Bringing(
            "restic",
            ("restic", "--repo", url, "restore", copy.key, "--target", TARGET),
            str(declared.environment_file) if declared.environment_file else None,
            (("RESTIC_PASSWORD_FILE", str(declared.password_file)),),
        )
    if isinstance(engine, CommandEngine):
        words = filled(
            engine.declared.restore, client=slug(night.manifest.client), night=night.manifest.id, target=TARGET
        )
        file = engine.declared.environment_file
        return Bringing(engine.called, tuple(words), str(file) if file else None)
    raise NothingToRecover(f"client {night.manifest.client}", f"night {night.name}, which lies in no folder")


def _facts(stores: Stores, client: str, night: Night) -> Facts | None:
    """The night's facts; of a night that must be brought first those of the overnight copy, of the same layout."""
    if night.folder is not None:
        path = night.folder / FACTS
        there = night.folder.is_relative_to(stores.place.path)
        found = permanent.at(stores.place, read_model, path, Facts) if there else read_model(path, Facts)
        if found is None:
            raise IntegrityError(str(path), "the facts of the night", "nothing")
        return found
    last = stores.store.night_of(client)  # read now, and written into the script: the store may be lost then
    if last is None or last.flavour != night.manifest.flavour:
        return None
    return read_model(stores.store.overnight(client) / FACTS, Facts)


def _target(declared: Inventory, name: str, system: System) -> SshTarget:
    who = declared.identities[system.identity]
    return SshTarget(name, system.address, who.user, system.port, who.private_key_file, who.known_hosts_file)


def _restores(client: Client, dumps: Sequence[DumpRecord]) -> Iterator[Restore]:
    """What loads the dumps, accounts of an engine first, as a recovery does it."""
    declared = {database.called: database for database in client.databases}
    for called in dict.fromkeys(dump.called for dump in dumps if dump.called in declared):
        made = sorted((dump for dump in dumps if dump.called == called), key=lambda dump: dump.kind)
        of = _of_command if called.startswith("command ") else _of_engine
        yield from of(declared[called], made)


def _undeclared(client: Client, dumps: Sequence[DumpRecord]) -> Iterator[str]:
    declared = {database.called for database in client.databases}
    left = {(dump.called, str(Path(dump.path).parent)): None for dump in dumps if dump.called not in declared}
    for called, folder in left:
        yield f"the dumps of {called} in {folder} are not loaded: the inventory no longer declares it."


def _of_engine(database: Database, dumps: Sequence[DumpRecord]) -> Iterator[Restore]:
    spoken, server = databases.ENGINES[database.server.engine], database.server
    ready = tuple(databases.script(server, spoken.ready))
    for dump in dumps:
        what = f"{dump.engine} {dump.database or dump.kind}"
        if dump.kind == "database":
            argv = databases.script(server, spoken.restore, dump.database, dump.path)
        elif spoken.accounts is not None:
            argv = databases.script(server, spoken.accounts.restore, dump.path)
        else:
            continue
        yield Restore(what, dump.path, dump.sha256, tuple(argv), ready)


def _of_command(database: Database, dumps: Sequence[DumpRecord]) -> Iterator[Restore]:
    """The command runs once, when the last of its files is proven."""
    for dump in dumps:
        last = dump is dumps[-1]
        folder = str(Path(dump.path).parent)
        argv = ("sh", "-euc", 'cd -- "$1"; shift; GBS_DUMP_FOLDER=$PWD; export GBS_DUMP_FOLDER; "$@"', "sh", folder)
        run = (*argv, *database.restore) if last and database.restore else ("true",)
        what = f"{database.called}, {Path(dump.path).name}"
        yield Restore(what if database.restore else f"{what}: bring it back by hand", dump.path, dump.sha256, run, ())
