"""A client's restore points where they lie: what there is, what is pinned, what was read again, and their rotation.

The names are rsnapshot's. Its own rotation says nothing of what it did not find, and deletes every point when it is
called often enough: the renames here are a plan of `tasks.model.retention`. Functions that are given a root touch the
permanent store and are called by `tasks.drivers.permanent.at`; those that are given a place do that themselves.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from tasks.drivers import store_clock
from tasks.drivers.permanent import PermanentPlace, at, watching
from tasks.drivers.store import read_model, remove, sync_folder, write_model
from tasks.errors import IntegrityError
from tasks.model.anomaly import HeldNight
from tasks.model.manifest import MANIFEST, NightManifest
from tasks.model.names import one_line
from tasks.model.retention import KEPT, SYNC, Move, Pin, Pins, Point, Reading, Readings, Rules, night_of, plan
from tasks.model.verify_choice import WHOLE

PINS, READINGS = ".pins.json", ".readings.json"
HELD, RECORD = ".held-", "held.json"
"""Before the name of a night that is kept aside (`tasks.drivers.held_nights`), and what says so in its folder."""
_INTERVALS = ("daily", "weekly", "monthly")
REMAINS, _TRASH = ".delete-", ".trash-"
"""Before the name of what may be removed at once, and of what was given up, with the day from which it may be."""
Found = Mapping[str, tuple[str | None, datetime | None, NightManifest | None]]
"""The night and the time of its content, as far as known, and the manifest, of points by their names."""


def points(root: Path) -> dict[str, NightManifest | None]:
    """The restore points below a client's root by name, newest intervals first; None without a good manifest."""
    found: dict[str, NightManifest | None] = {}
    for folder in root.iterdir() if root.is_dir() else ():
        interval, _, number = folder.name.partition(".")
        if (interval in _INTERVALS and number.isdecimal()) or folder.name.startswith(KEPT):
            found[folder.name] = _manifest_of(folder)
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def _manifest_of(folder: Path) -> NightManifest | None:
    try:
        return read_model(folder / MANIFEST, NightManifest)
    except IntegrityError:
        return None  # it is no backup, and no reason to stop the others; a reading tells (point_check)


def pins(root: Path) -> Pins:
    """The nights of a client that are pinned."""
    return read_model(root / PINS, Pins) or Pins()


def pin(root: Path, wanted: Pin | None, night: str) -> None:
    """Pin a night anew, or no more."""
    others = [one for one in pins(root).pins if one.night != night]
    write_model(root / PINS, Pins(pins=(*others, *([wanted] if wanted else []))))


def held(root: Path) -> list[HeldNight]:
    """The nights that are kept aside, oldest first."""
    found = []
    for folder in sorted(root.glob(f"{HELD}*")):
        try:
            record = read_model(folder / RECORD, HeldNight)
        except IntegrityError:
            record = None
        night, since = folder.name.removeprefix(HELD), datetime.fromtimestamp(folder.stat().st_mtime, UTC)
        found.append(record or HeldNight(night=night, since=since, reasons=(f"{RECORD} cannot be read",)))
    return found


def held_of(roots: Mapping[str, Path]) -> dict[str, list[HeldNight]]:
    """The nights that are kept aside below several clients' roots, by client."""
    return {client: held(root) for client, root in roots.items()}


def pinned(root: Path) -> dict[str, Pin]:
    """The pins by their nights; what a night that is held was compared with is pinned as long as that is."""
    against = {one.change.against: one.night for one in held(root) if one.change}
    told = {one.night: one for one in pins(root).pins}
    return told | {
        good: Pin(night=good, until=date.max, reason=f"held: night {night} is not like it")
        for good, night in against.items()
    }


def require_told(root: Path) -> None:
    """IntegrityError when it cannot be told which nights are pinned."""
    pins(root)
    if lost := [one.night for one in held(root) if not one.change]:
        raise IntegrityError(str(root / f"{HELD}{lost[0]}" / RECORD), "why that night is held", "nothing readable")


def told(root: Path) -> tuple[dict[str, Pin], str | None]:
    """As `pinned`, or why that cannot be told."""
    try:
        require_told(root)
        return pinned(root), None
    except IntegrityError as exc:
        return {}, one_line(str(exc))


def pin_of(night: str | None, known: Mapping[str, Pin], unclear: str | None) -> Pin | None:
    """The pin of a night by what is `told`; each has one while that is unclear."""
    if night is None or unclear is None:
        return known.get(night or "")
    return Pin(night=night, until=date.max, reason=f"it cannot be told which nights are: {unclear}")


def retained(root: Path, found: Mapping[str, tuple[str, datetime, NightManifest | None]] | None = None) -> list[Point]:
    """The restore points as retention looks at them: those below the root, or those that another engine has `found`.

    Nights are told also where no manifest is: by the names of `kept.` ones. One without may be a pinned one, if missed.
    """
    below, now = points(root) if found is None else {}, datetime.now(UTC)
    there: Found = found or {name: (night_of(name), None, manifest) for name, manifest in below.items()}
    (known, unclear), read = told(root), readings(root).nights
    nights = {manifest.id if manifest else named for named, _, manifest in there.values()}
    lost = unclear is not None or any(pin.holds(now) and pin.night not in nights for pin in known.values())
    judged = list[Point]()
    for name, (named, pulled, manifest) in there.items():
        night, content = (manifest.id, manifest.ended) if manifest else (named, pulled)
        missed = found is not None or (lost and night is None) or (root / name / MANIFEST).exists()
        damaged = manifest is None or (night in read and bool(read[manifest.id].damaged))
        judged.append(Point(name, night, content, pin_of(night, known, unclear), damaged, manifest is None and missed))
    return judged


def readings(root: Path) -> Readings:
    """The last reading of each of a client's nights, as `note` has it."""
    try:
        return read_model(root / READINGS, Readings) or Readings()
    except IntegrityError:
        return Readings()  # the next reading makes it anew


def note(root: Path, nights: Mapping[str, Reading], there: Collection[str] | None = None) -> None:
    """Note readings; those of nights that are gone are forgotten. A sample does not make a night whole again.

    `there` are the nights of an engine that does not keep them below the root.
    """
    known = dict(readings(root).nights)
    for night, reading in nights.items():
        before = known.get(night)
        still = before.damaged if before and reading.percent < WHOLE else ()
        known[night] = reading.model_copy(update={"damaged": tuple(dict.fromkeys((*still, *reading.damaged)))})
    if there is None:
        there = {found.id for found in points(root).values() if found}
    write_model(root / READINGS, Readings(nights={night: one for night, one in known.items() if night in there}))


def points_of(roots: Mapping[str, Path]) -> dict[str, dict[str, NightManifest | None]]:
    """The restore points below several clients' roots, by client."""
    return {client: points(root) for client, root in roots.items()}


def _order(name: str) -> tuple[int, int | str]:
    interval, _, number = name.partition(".")
    return (_INTERVALS.index(interval), int(number)) if interval in _INTERVALS else (len(_INTERVALS), number)


def planned(root: Path, store: Path, rules: Rules, now: datetime, sync: str) -> list[Move]:
    """The moves that `rotate` would make, and the errors that it would raise before."""
    stamp, newest = stamp_of(root / sync), root / f"{rules.retain[0].interval}.0"
    return moves(store, retained(root), (str(newest), _manifest_of(newest)), stamp, rules, now, sync)


def moves(
    store: Path,
    there: Sequence[Point],
    newest: tuple[str, NightManifest | None],
    stamp: NightManifest,
    rules: Rules,
    now: datetime,
    sync: str,
) -> list[Move]:
    """What taking a stamped sync in does to the points of any engine; [] when it is the newest one already.

    `newest` is what that is called, and its manifest. The clock of the permanent store, whose root is `store`, is asked
    when something moves, since to ask is to write there. IntegrityError when the newest point is of a later time, or
    cannot be told to be this night: nothing would rotate until then.
    """
    found = plan(there, rules, stamp.ended, now, sync)
    if found:
        doubt = store_clock.doubt(store, now)
        return found if doubt is None else plan(there, rules, stamp.ended, now, sync, doubt)
    where, manifest = newest
    if manifest != stamp:
        found_there = f"that of {manifest.id}: was a clock wrong?" if manifest else "none that can be read"
        raise IntegrityError(where, f"the stamp of night {stamp.id}", found_there)
    return []


def rotate(place: PermanentPlace, root: Path, rules: Rules, trash_days: int, sync: str = SYNC) -> list[Move]:
    """Rotate as far as the fresh sync asks for; [] when its content is no newer than the newest point.

    What is given up is out of sight, and removed by `tidy` once `trash_days` have passed; nothing is while the clock is
    in doubt. Raises IntegrityError when there is no stamped sync, and as `moves` does.
    """
    return at(place, _rotate, root, place.path, rules, datetime.now(UTC), trash_days, sync)


def tidy(place: PermanentPlace, root: Path) -> int:
    """Remove what was given up and is due, and what failed runs left; how many trees.

    IntegrityError in the end when it cannot be told what is pinned: nothing is given up then.
    """
    doomed = [*at(place, remains, root), *at(place, due, root, datetime.now(UTC).date())]
    for folder in doomed:
        remove(folder, watching(place))
    at(place, require_told, root)
    return len(doomed)


def stamp_of(sync: Path) -> NightManifest:
    """The stamp of a sync; IntegrityError when it has none, or its files are another engine's."""
    stamp = read_model(sync / MANIFEST, NightManifest) if (sync / "data").is_dir() else None
    if stamp is None:
        raise IntegrityError(str(sync), "a stamped sync", "none")
    return stamp


def _rotate(root: Path, store: Path, rules: Rules, now: datetime, trash_days: int, sync: str = SYNC) -> list[Move]:
    """As `rotate`."""
    mend(root)
    made = planned(root, store, rules, now, sync)
    _make(root, made, root / f"{rules.retain[0].interval}.0", now.date() + timedelta(days=trash_days))
    return made


def _make(root: Path, moves: Sequence[Move], newest: Path, due: date) -> None:
    """Make planned moves; what is given up may be removed from the day `due`."""
    leaving = [_aside(root / move.point) for move in moves if move.to is None]
    for move in moves:
        if move.to is not None:
            (root / move.point).rename(root / move.to)
    (newest / RECORD).unlink(missing_ok=True)  # of a night that was held
    for folder in leaving:
        give_up(folder, due)
    sync_folder(root)


def give_up(folder: Path, due: date) -> None:
    """Put a night out of sight; it can be had back until it is removed, from the day `due` on."""
    hide(folder, f"{_TRASH}{due}-")


def _aside(folder: Path) -> Path:
    """Free the name of a point that goes. Should we be killed before the new one is there, it is a point still."""
    found = _manifest_of(folder)
    aside = folder.with_name(f"{KEPT}{found.id if found else folder.name}-{os.urandom(4).hex()}")
    return folder.rename(aside)


def mend(root: Path) -> None:
    """Close the gap that a killed rotation left.

    A rotation frees the last place first and shifts then; without this the next one would free it a second time.
    """
    next_free: dict[str, int] = {}
    for name in points(root):
        interval, _, number = name.partition(".")
        if interval not in _INTERVALS:
            continue
        place = next_free.get(interval, 0)
        next_free[interval] = place + 1
        if int(number) != place:
            (root / name).rename(root / f"{interval}.{place}")


def hide(folder: Path, prefix: str = REMAINS) -> Path:
    """Rename what is to be removed, by default at once: half removed, it must not look like a backup. The new path."""
    return folder.rename(folder.with_name(f"{prefix}{folder.name.lstrip('.')}-{os.urandom(4).hex()}"))


def in_trash(root: Path, name: str) -> bool:
    """Whether a folder of this name was given up and can still be had back."""
    return any(
        path.name[len(f"{_TRASH}2026-11-26-") :].startswith(f"{name.lstrip('.')}-") for path in root.glob(f"{_TRASH}*")
    )


def aside(root: Path) -> list[Path]:
    """The folders of nights that are held, and of those that were and can still be had back."""
    return [*root.glob(f"{HELD}*"), *root.glob(f"{_TRASH}*-{HELD.lstrip('.')}*")]


def due(root: Path, today: date) -> list[Path]:
    """What was given up and may be removed by now, the oldest first."""
    trash = sorted(root.glob(f"{_TRASH}*"))
    return [path for path in trash if path.name.removeprefix(_TRASH)[:10] <= today.isoformat()]


def remains(root: Path) -> list[Path]:
    """What failed runs left; `_delete.` is rsnapshot's own, should somebody have called that."""
    return [*root.glob("_delete.*"), *root.glob(f"{REMAINS}*")]
