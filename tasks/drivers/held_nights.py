"""Nights that are not like a client's others: kept aside before they rotate, until an operator decides.

A held night is the stamped sync under another name, `.held-<night>`, with a record of why (`held.json`): one rename
holds it, one rename decides about it, and what was killed in between is as it was. While it is there the point that it
was compared with is pinned (`restore_points.retained`), which no record of its own has to say. Functions that are given
a root touch the permanent store and are called by `tasks.drivers.permanent.at`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from tasks.drivers.night_changes import compare
from tasks.drivers.restore_points import (
    HELD,
    RECORD,
    give_up,
    held,
    hide,
    in_trash,
    make,
    mend,
    pin,
    pins,
    points,
    retained,
)
from tasks.drivers.store import read_model, sync_folder, write_model
from tasks.errors import ConfigError, IntegrityError, UnknownName
from tasks.model.anomaly import Change, Decision, Figure, HeldNight, Past, PastNight, judge
from tasks.model.manifest import MANIFEST, NightManifest
from tasks.model.retention import SYNC, Move, Pin, Rules, plan

PAST = ".changes.json"
"""What a client's nights changed, in its root."""
REJECTED_DAYS = 30
"""So long the last good point is pinned when a night is rejected: its successors need not be any better."""


@dataclass(frozen=True)
class Braking:
    """How nights are braked: the policy's percentages, whether to hold, how many are kept, how long the trash is."""

    ceilings: Mapping[Figure, float]
    hold: bool
    keep: int
    trash_days: int


@dataclass(frozen=True)
class Braked:
    """What became of a fresh sync: `reasons` against it, whether it is held, and what was held before."""

    change: Change | None = None
    reasons: tuple[str, ...] = ()
    held: bool = False
    waiting: tuple[str, ...] = ()
    given_up: tuple[str, ...] = ()
    """Nights that were held and are not any more: there were too many."""
    damaged: tuple[str, ...] = ()
    """Newer points that it was not compared with, as their listings are not what they were."""


def brake(root: Path, overnight: Path, braking: Braking) -> Braked:
    """Judge the fresh sync against the newest restore point; hold it, or remember what it changed.

    `overnight` is what was synced: it lies nearer. Nothing is judged without a stamp or a point to compare with.
    """
    waiting = tuple(one.night for one in held(root))
    stamp = read_model(root / SYNC / MANIFEST, NightManifest)
    change, damaged = _change(root, stamp, overnight) if stamp else (None, ())
    if stamp is None or change is None or change.against == stamp.id:
        return Braked(change, waiting=waiting, damaged=damaged)
    past = _past(root)
    reasons = tuple(judge(change, past, braking.ceilings))
    if reasons and braking.hold:
        return Braked(change, reasons, True, waiting, _hold(root, change, reasons, braking), damaged)
    write_model(root / PAST, past.with_night(PastNight(change=change)))
    return Braked(change, reasons, waiting=waiting, damaged=damaged)


def _change(root: Path, stamp: NightManifest, overnight: Path) -> tuple[Change | None, tuple[str, ...]]:
    """The sync against the newest point whose listing is whole, None when there is none; and newer points."""
    near = overnight if read_model(overnight / MANIFEST, NightManifest) == stamp else root / SYNC
    stamped = [(name, found) for name, found in points(root).items() if found]
    damaged: list[str] = []
    for name, found in sorted(stamped, key=lambda item: item[1].ended, reverse=True):
        try:
            return compare(root / name, found, near, stamp), tuple(damaged)
        except IntegrityError:
            damaged.append(name)
    return None, tuple(damaged)


def _past(root: Path) -> Past:
    try:
        return read_model(root / PAST, Past) or Past()
    except IntegrityError:
        return Past()  # it is known too little of the client then, as at its beginning


def _hold(root: Path, change: Change, reasons: tuple[str, ...], braking: Braking) -> tuple[str, ...]:
    """Keep the sync aside; which nights had to go for it. The first one stays: it has changed the least."""
    now = datetime.now(UTC)
    final = root / f"{HELD}{change.night}"
    if final.exists():
        hide(root / SYNC)  # the same night again
    else:
        write_model(root / SYNC / RECORD, HeldNight(night=change.night, since=now, reasons=reasons, change=change))
        (root / SYNC).rename(final)
    nights = [one.night for one in held(root)]
    too_many = nights[1 : 1 + len(nights) - braking.keep] if len(nights) > braking.keep else []
    for night in too_many:
        give_up(root / f"{HELD}{night}", now.date() + timedelta(days=braking.trash_days))
    sync_folder(root)
    return tuple(too_many)


def accept(root: Path, night: str | None, reason: str, rules: Rules, trash_days: int, dry_run: bool) -> Decision:
    """Make a held night (by default the newest) the newest restore point; held ones before it go to the trash.

    It joins what is known of the client, so that the like of it is not held again. Once it is a restore point, this
    does what is left to do. Raises UnknownName, and ConfigError when there is a newer restore point by now.
    """
    nights, now = [one.night for one in held(root)], datetime.now(UTC)
    due = now.date() + timedelta(days=trash_days)
    if night is None and not nights:
        return Decision()
    night = night or nights[-1]
    older = tuple(one for one in nights if one < night)
    there = {found.id for found in points(root).values() if found}
    if night not in nights and night not in there:
        raise UnknownName("held night", night, nights)
    moves: tuple[Move, ...] = ()
    if night in nights:
        moves = _accepting(root, night, rules, now)
        if not dry_run:
            _accept(root, night, reason, rules, due)
    if not dry_run:
        for one in older:
            give_up(root / f"{HELD}{one}", due)
        sync_folder(root)
    return Decision(moves, older, due)


def _accepting(root: Path, night: str, rules: Rules, now: datetime) -> tuple[Move, ...]:
    """The moves that make a held night the newest point."""
    folder = root / f"{HELD}{night}"
    stamp = _stamp(folder)
    moves = [
        Move(folder.name, move.to, move.reason) if move.point == SYNC else move
        for move in plan(retained(root), rules, stamp.ended, now)
    ]
    if not moves:
        what = "there is a restore point of a later time, which was like the last good one"
        raise ConfigError(
            f"night {night} cannot become the newest", what, "reject it; until it is removed it can be had back"
        )
    return tuple(moves)


def _stamp(folder: Path) -> NightManifest:
    stamp = read_model(folder / MANIFEST, NightManifest)
    if stamp is None:
        raise IntegrityError(str(folder), "a stamped night", "none")
    return stamp


def _accept(root: Path, night: str, reason: str, rules: Rules, due: date) -> None:
    """Its figures first: should this be killed, the like of it is let through, as the operator wants."""
    folder = root / f"{HELD}{night}"
    stamp, record = _stamp(folder), next(one for one in held(root) if one.night == night)
    if record.change is not None:
        write_model(root / PAST, _past(root).with_night(PastNight(change=record.change, accepted=reason)))
    mend(root)
    make(root, _accepting(root, night, rules, datetime.now(UTC)), rules, stamp, due)
    (root / f"{rules.retain[0].interval}.0" / RECORD).unlink(missing_ok=True)


def reject(root: Path, night: str | None, reason: str, trash_days: int, dry_run: bool) -> Decision:
    """Put a held night, by default all of them, into the trash; what it was compared with stays pinned for a while.

    Raises UnknownName for a night that is not held and was not.
    """
    waiting = {one.night: one for one in held(root)}
    if night is not None and night not in waiting:
        if in_trash(root, f"{HELD}{night}"):
            return Decision()
        raise UnknownName("held night", night, list(waiting))
    chosen = [waiting[night]] if night else [*waiting.values()]
    today = datetime.now(UTC).date()
    due = today + timedelta(days=trash_days)
    good = {one.change.against: one.night for one in chosen if one.change}
    pinned = tuple(_longer(root, point, today, f"night {one} was rejected: {reason}") for point, one in good.items())
    if not dry_run:
        for wanted in pinned:
            pin(root, wanted, wanted.night)
        for one in chosen:
            give_up(root / f"{HELD}{one.night}", due)
        sync_folder(root)
    return Decision((), tuple(one.night for one in chosen), due, pinned) if chosen else Decision()


def _longer(root: Path, night: str, today: date, reason: str) -> Pin:
    """A pin for REJECTED_DAYS more, or the one that there is when that holds longer."""
    until = today + timedelta(days=REJECTED_DAYS)
    before = next((one for one in pins(root).pins if one.night == night), None)
    if before is None:
        return Pin(night=night, until=until, reason=reason)
    if before.until >= until:
        return before
    return Pin(night=night, until=until, reason=f"{before.reason}; {reason}")
