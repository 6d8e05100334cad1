"""The replicas of a VM's images as retention looks at them, what it says of each, and the trash they go to.

A replica that is given up stands as `.trash-<day>-<its id>-…` beside the others until that day.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

from tasks.drivers import originals, restore_points, store_clock
from tasks.drivers.engines.chosen import engine_of
from tasks.drivers.permanent import PermanentPlace, at
from tasks.drivers.store import Store, read_model, sync_folder
from tasks.errors import ClockDoubted, GbsError, IntegrityError
from tasks.model.inventory import Inventory
from tasks.model.manifest import MANIFEST, ImageManifest
from tasks.model.names import slug
from tasks.model.replica import IMAGES
from tasks.model.replica_retention import Replica, Verdict, judge
from tasks.model.retention import Pin
from tasks.model.verify_choice import Verified

log = logging.getLogger(__name__)


def verdicts(
    declared: Inventory,
    store: Store,
    place: PermanentPlace,
    vm: str,
    now: datetime,
    doubt: str | None = None,
    *,
    wanted: bool = False,
) -> list[Verdict]:
    """What becomes of each replica of the VM's images, newest first.

    With `wanted` its images that have none are among them. Of these, no old one is made because damage puts others in
    doubt: that is for the next reading to say. Also with it an engine that cannot list the client's nights is no error:
    all that is there stays then, and of the other images the newest are made.
    """
    found = at(place, _there, place.path, vm)
    replicas = [_as_read(store, name, image, pin) for name, (image, pin) in found.items()]
    if wanted:
        images = {originals.place_of(image): image for _, image in store.images_of(vm)}
        replicas += [
            Replica(images[name].id, name, images[name].flavour, there=False) for name in images.keys() - found
        ]
    count = declared.policy_of_vm(vm).image_replicas
    stay = f"the clock is in doubt: {doubt}" if doubt else None
    flavours = set[str]()
    try:
        flavours = _flavours(declared, store, place, vm) if len(replicas) > count else flavours
    except GbsError as exc:
        if not wanted:
            raise
        log.warning("images of %s: %s", vm, exc)
        stay = f"the client's nights cannot be listed: {exc}"
    if vm not in declared.vms and not store.images_of(vm):
        stay = "no client is this VM, and the store has no image of it: for you to remove"
    judged = judge(replicas, count, flavours, now, stay)
    undoubted = judge([replace(one, hurt=None) for one in replicas], count, flavours, now)
    return [one if one.replica.there else other for one, other in zip(judged, undoubted, strict=True)]


def record_of(store: Store, place: str) -> Path:
    """Where it is noted what the readings of a replica found."""
    return store.root / "verified" / "replicas" / f"{slug(place)}.json"


def read_of(store: Store, place: str) -> Verified | None:
    """What is noted of a replica's readings; while that cannot be read it is damaged until all of it was read."""
    try:
        return read_model(record_of(store, place), Verified)
    except IntegrityError as exc:
        log.error("%s", exc)
        never = datetime.min.replace(tzinfo=UTC)
        # What was last found may have put others that share its blocks in doubt.
        hurt = datetime.fromtimestamp(record_of(store, place).stat().st_mtime, UTC)
        return Verified(image=place, at=never, damaged=("its record cannot be read",), hurt=hurt)


def give_up(place: PermanentPlace, doomed: Sequence[Path], folders: Sequence[Path], due: date) -> None:
    """Put replicas out of sight until the day `due`, and remove what of those in `folders` was given up and is due.

    Raises ClockDoubted when something should go and nothing may; in the end IntegrityError for pins that are damaged.
    """
    try:
        store_clock.require(place)
    except ClockDoubted:
        if doomed:
            raise
        return
    at(place, _give_up, doomed, due)
    damage = list[IntegrityError]()
    for folder in folders:
        try:
            restore_points.tidy(place, folder)
        except IntegrityError as exc:
            damage.append(exc)
    if damage:
        raise damage[0]


def folders_of(place: PermanentPlace, vm: str) -> list[Path]:
    """Where the replicas of a VM's images lie, a folder for each KVM host."""
    return at(place, _folders, place.path, vm)


def pin(place: PermanentPlace, folder: Path, wanted: Pin | None) -> None:
    """Pin the replica in `folder` anew, or no more."""
    at(place, restore_points.pin, folder.parent, wanted, folder.name)


def _as_read(store: Store, place: str, image: ImageManifest | None, pin: Pin | None) -> Replica:
    record = read_of(store, place)
    flavour = image.flavour if image else None
    if record is None:
        return Replica(Path(place).name, place, flavour, pin=pin)
    return Replica(Path(place).name, place, flavour, read=record.at, hurt=record.hurt, damaged=record.damaged, pin=pin)


def _flavours(declared: Inventory, store: Store, place: PermanentPlace, vm: str) -> set[str]:
    """The disk layouts of all nights that the VM could be recovered to."""
    if (client := declared.vms.get(vm)) is None:
        return set()
    points = engine_of(declared, client, store, place).points()
    nights = [*points.values(), store.night_of(client)]
    return {night.flavour for night in nights if night is not None}


def _there(root: Path, vm: str) -> dict[str, tuple[ImageManifest | None, Pin | None]]:
    """The replicas of a VM's images by their places; None for one whose manifest cannot be read."""
    found: dict[str, tuple[ImageManifest | None, Pin | None]] = {}
    for folder in _folders(root, vm):
        pins, unclear = restore_points.told(folder)
        for path in sorted(folder.glob(f"[!.]*/{MANIFEST}")):
            try:
                image = read_model(path, ImageManifest)
            except IntegrityError:
                image = None
            name = path.parent.relative_to(root).as_posix()
            found[name] = (image, restore_points.pin_of(path.parent.name, pins, unclear))
    return found


def _folders(root: Path, vm: str) -> list[Path]:
    return sorted(root.glob(f"{IMAGES}/*/{slug(vm)}"))


def _give_up(folders: Sequence[Path], due: date) -> None:
    for folder in folders:
        restore_points.give_up(folder, due)
        sync_folder(folder.parent)
