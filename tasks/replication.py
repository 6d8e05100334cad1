"""Replicas in the permanent store of what the store has besides overnight copies, and the GBS server's recovery set."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from sqlalchemy.engine import make_url

from tasks import places
from tasks.drivers import (
    inventory_file,
    kept_replicas,
    originals,
    permanent,
    recovery_set,
    replica_check,
    replicas,
    runbooks,
)
from tasks.drivers.progress import reporting
from tasks.drivers.recovery_set import PrefectServer
from tasks.drivers.replica_check import Checked
from tasks.drivers.runbooks import Stores
from tasks.drivers.store import write_model
from tasks.errors import IntegrityError, NothingToRecover, StoreError, UnknownName
from tasks.model.inventory import Policy
from tasks.model.manifest import ServerManifest
from tasks.model.names import time_of_id
from tasks.model.replica import Kind, Original
from tasks.model.verify_choice import WHOLE, Turn, Verified, choose_turns, noted
from tasks.retryable import retryable

log = logging.getLogger(__name__)
BLOCK_TYPES = ("gbs-store", "gbs-permanent-store", "gbs-ssh-identity", "gbs-kvm-host", "gbs-device-login")


DEVICES, SERVER = "devices", "GBS server"


def called_of(kind: Kind, name: str) -> str:
    """Who has the results of a replica: the client that a VM is, all devices, or the server."""
    whose = {"device": DEVICES, "server": SERVER}
    return whose.get(kind) or places.inventory().vms.get(name, name)


@dataclass(frozen=True)
class Made:
    """The replicas that were made, by the ids of their originals, and the bytes that were written for them."""

    ids: tuple[str, ...]
    written_bytes: int


@dataclass(frozen=True)
class Replica:
    """A replica to be read, by its place below the permanent store; its original, if that is there."""

    kind: Kind
    called: str
    """Whose lock it is made and read under, and who has the results of that."""
    place: str
    original: Path | None
    reason: str


def vms() -> list[str]:
    """The VMs of which there is something to replicate."""
    return originals.vms(places.store())


@retryable("list replicas", retries=0)
def vms_gone() -> list[str]:
    """The VMs of whose images the permanent store has something, and the store nothing any more."""
    place = places.permanent()
    permanent.prove(place)
    return sorted(permanent.at(place, originals.vms_kept, place.path) - {*vms()})


@retryable("replicate images", "replicate images of {vm}")
def replicate_images(vm: str) -> Made:
    """The VM's templates, and those of its images that are kept there, which the permanent store does not have yet."""
    store, place = places.store(), places.permanent()
    permanent.prove(place)
    judged = kept_replicas.verdicts(places.inventory(), store, place, vm, datetime.now(UTC), wanted=True)
    unwanted = {one.replica.place for one in judged if not one.stays}
    images = [original for original in originals.images(store, vm) if original.place not in unwanted]
    wanted = [*images, *originals.templates(store, vm)]
    return _replicate(f"replicate images of {vm}", wanted, places.policy_of_vm(vm).bytes_per_s)


@retryable("retain replicas", "retain replicas of images of {vm}", retries=0)
def retain_images(vm: str) -> list[str]:
    """Give up the replicas of the VM's images that nothing keeps, remove what is due; the ids of those that went.

    Raises ClockDoubted when something should go and nothing may.
    """
    store, place, now = places.store(), places.permanent(), datetime.now(UTC)
    permanent.prove(place)
    judged = kept_replicas.verdicts(places.inventory(), store, place, vm, now)
    doomed = [one for one in judged if not one.stays]
    due = now.date() + timedelta(days=places.policy_of_vm(vm).trash_days)
    paths = [place.path / one.replica.place for one in doomed]
    kept_replicas.give_up(place, paths, kept_replicas.folders_of(place, vm), due)
    for one in doomed:
        log.info("%s: image %s went to the trash until %s: %s", vm, one.replica.id, due, one.reason)
    return [one.replica.id for one in doomed]


@retryable("keep runbook", "keep the runbook of {vm}")
def keep_runbook(vm: str) -> Path | None:
    """Write how the VM is brought back by hand into the permanent store; None where that cannot be said."""
    if vm not in places.inventory().vms:
        return None
    stores = Stores(places.inventory(), places.store(), places.permanent())
    try:
        return runbooks.keep(stores, vm, datetime.now(UTC))
    except (NothingToRecover, UnknownName) as exc:
        log.warning("no runbook of %s: %s", vm, exc)
        return None


@retryable("replicate configurations")
def replicate_configurations() -> Made:
    """The configurations of devices that the permanent store does not have yet."""
    wanted = originals.configurations(places.store(), list(places.inventory().devices))
    return _replicate("replicate configurations", wanted)


@retryable("recovery set", retries=1)
def gather() -> ServerManifest:
    """What this GBS server is rebuilt from, published in the store; see `recovery_set.make`."""
    store = places.store()
    return recovery_set.make(
        store.recovery_sets,
        store.trash,
        places.inventory(),
        inventory_file.inventory_path(),
        PrefectServer(_blocks(), _prefect_file(), str(flow_run.id)),
        datetime.now(UTC),
    )


@retryable("replicate recovery sets")
def replicate_recovery_sets() -> Made:
    """The recovery sets that the permanent store does not have yet."""
    return _replicate("replicate recovery sets", originals.recovery_sets(places.store()))


@retryable("retain recovery sets", retries=0)
def retain_recovery_sets() -> list[str]:
    """Give up the recovery sets beyond the wanted number, remove what is due; the ids of those that went.

    Raises ClockDoubted when something should go and nothing may.
    """
    place, declared, today = places.permanent(), places.inventory(), datetime.now(UTC).date()
    permanent.prove(place)
    folder = place.path / originals.place_of_sets(declared.site)
    doomed = permanent.at(place, recovery_set.beyond, folder, declared.server.keep)
    due = today + timedelta(days=declared.policies.get("default", Policy()).trash_days)
    kept_replicas.give_up(place, doomed, [folder], due)
    return [path.name for path in doomed]


def _replicate(called: str, wanted: Sequence[Original], bytes_per_s: int | None = None) -> Made:
    """Make the replicas that are missing; a damaged original hinders none of the others, and is raised in the end."""
    place, ids, written_bytes = places.permanent(), list[str](), 0
    damaged: list[IntegrityError] = []
    with reporting(log, called) as progress:
        for original in wanted:
            try:
                written = replicas.replicate(place, original, bytes_per_s, progress.update)
            except IntegrityError as exc:
                log.error("%s: %s", called, exc)
                damaged.append(exc)
                continue
            if written is not None:
                log.info("%s: %s %s is in the permanent store", called, original.kind, original.id)
                ids, written_bytes = [*ids, original.id], written_bytes + written
        folders = {Path(original.place).parent.as_posix() for original in wanted}
        for folder in sorted(folders):
            replicas.forget_partial(place, folder, {Path(original.place).name for original in wanted})
    if damaged:
        raise damaged[0]
    return Made(tuple(ids), written_bytes)


@retryable("fetch image", "fetch image {wanted} of {vm}")
def fetch_image(vm: str, wanted: str) -> str:
    """Bring an image (an id, or `newest`) back from the permanent store into the store; its id.

    NothingToRecover when there is no such replica; harmless when the store has it.
    """
    place, store = places.permanent(), places.store()
    permanent.prove(place)
    there = permanent.at(place, originals.images_there, place.path, vm)
    chosen = originals.choose(there, wanted, vm, place.path)
    with reporting(log, f"fetch image {chosen.id} of {vm}") as progress:
        bytes_per_s, reserve_bytes = places.policy_of_vm(vm).bytes_per_s, places.reserve_bytes()
        replicas.replicate(place, chosen, bytes_per_s, progress.update, into=store.root, reserve_bytes=reserve_bytes)
    return chosen.id


@retryable("choose replicas", retries=0)
def choose(older_than_days: int, at_most: int | None) -> list[Replica]:
    """The replicas to read, longest unread first; also those whose originals are gone."""
    store, place = places.store(), places.permanent()
    permanent.prove(place)
    devices = list(places.inventory().devices)
    known = [original for vm in originals.vms(store) for original in originals.images(store, vm)]
    known += [original for vm in originals.vms(store) for original in originals.templates(store, vm)]
    known += [*originals.configurations(store, devices), *originals.recovery_sets(store)]
    by_place = {original.place: original for original in known}
    found = permanent.at(place, replicas.published, place.path)
    made = {path: _made(path) for path in found}
    records = {path: kept_replicas.read_of(store, path) for path in found}
    known_of = {path: record for path, record in records.items() if record is not None}
    turns = choose_turns(made, known_of, datetime.now(UTC), older_than_days=older_than_days, at_most=at_most)
    return [_replica(turn, found[turn.name], by_place.get(turn.name)) for turn in turns]


def _replica(turn: Turn, kind: Kind, original: Original | None) -> Replica:
    name = original.name if original else Path(turn.name).parent.name
    return Replica(kind, called_of(kind, name), turn.name, original.folder if original else None, turn.reason)


@retryable("verify replica", "verify replica {replica.place}", retries=0)
def verify(replica: Replica, percent: float) -> Checked:
    """Read a replica where it lies and heal it from its original; IntegrityError when something stays damaged.

    It is noted what it found.
    """
    store, place = places.store(), places.permanent()
    permanent.prove(place)
    folder, record = place.path / replica.place, kept_replicas.record_of(store, replica.place)
    before = kept_replicas.read_of(store, replica.place) or Verified(image=replica.place, at=_made(replica.place))
    if whole := percent >= WHOLE:
        # First, so that one whose reading ends with this process takes no others' turn.
        before = before.model_copy(update={"tried": datetime.now(UTC)})
        try:
            write_model(record, before)
        except OSError as exc:  # a full store, say: no reason to read nothing
            log.warning("%s: it cannot be noted that it is read: %s", replica.place, exc)
    with reporting(log, f"verify replica {replica.place}") as progress:
        found = replica_check.check(place, replica.kind, folder, replica.original, percent, progress.update)
    for path in found.healed:
        log.warning("%s/%s was damaged and is healed by its original", replica.place, path)
    damage = IntegrityError(str(folder / found.left[0]), "what its manifest says", "another") if found.left else None
    try:
        write_model(record, noted(before, found.what, found.left, datetime.now(UTC), whole=whole))
    except OSError as exc:
        raise damage or StoreError(str(record), f"the reading cannot be noted: {exc.strerror}") from exc
    if damage is not None:
        raise damage
    return found


def _made(place: str) -> datetime:
    try:
        return time_of_id(Path(place).name)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)  # not one of ours: read first


def _blocks() -> dict[str, Any]:
    """The blocks of GBS as Prefect has them, by document name."""
    with get_client(sync_client=True) as client:
        return {
            str(document.name): {"type": kind, "data": document.data}
            for kind in BLOCK_TYPES
            for document in client.read_block_documents_by_type(kind, include_secrets=False)
        }


def _prefect_file() -> Path | None:
    """The SQLite file that the settings of this process name as Prefect's database."""
    url = get_current_settings().server.database.connection_url
    named = make_url(url.get_secret_value()) if url else None
    return Path(named.database) if named and named.database and named.get_backend_name() == "sqlite" else None
