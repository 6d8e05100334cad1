"""Nights that are not like a client's others: kept aside before they rotate, until an operator decides.

A held night is the stamped sync under another name, `.held-<night>`, with a record of why (`held.json`): one rename
holds it, one rename decides about it, and what was killed in between is as it was. So it is with every engine; what an
engine keeps elsewhere stays there as long as the folder is. While it is there the point that it was compared with is
pinned (`restore_points.pinned`), which no record of its own has to say. Functions that are given a root touch the
permanent store and are called by `tasks.drivers.permanent.at`; those that are given an engine do that themselves.
"""

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from tasks.drivers import store_clock
from tasks.drivers.engines import Engine
from tasks.drivers.permanent import at
from tasks.drivers.restore_points import HELD, RECORD, give_up, held, hide, in_trash, pin, pins
from tasks.drivers.store import read_model, sync_folder, write_model
from tasks.errors import ConfigError, IntegrityError, UnknownName
from tasks.model.anomaly import Change, Decision, HeldNight, Past, PastNight, judge
from tasks.model.inventory import Policy
from tasks.model.manifest import NightManifest
from tasks.model.retention import SYNC, Move, Pin

PAST = ".changes.json"
"""What a client's nights changed, in its root."""
REJECTED_DAYS = 30
"""So long the last good point is pinned when a night is rejected: its successors need not be any better."""


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


def brake(engine: Engine) -> Braked:
    """Judge the fresh sync against the newest restore point; hold it, or remember what it changed.

    Nothing is judged without a point to compare with.
    """
    change, damaged = engine.changes()
    ground = engine.ground
    return replace(at(ground.place, _judged, ground.root, ground.place.path, change, ground.policy), damaged=damaged)


def _judged(root: Path, store: Path, change: Change | None, policy: Policy) -> Braked:
    waiting = tuple(one.night for one in held(root))
    if change is None or change.against == change.night:
        return Braked(change, waiting=waiting)
    past = _past(root)
    reasons = tuple(judge(change, past, policy.ceilings))
    if reasons and policy.brake == "hold":
        return Braked(change, reasons, True, waiting, _hold(root, store, change, reasons, policy))
    write_model(root / PAST, past.with_night(PastNight(change=change)))
    return Braked(change, reasons, waiting=waiting)


def _past(root: Path) -> Past:
    try:
        return read_model(root / PAST, Past) or Past()
    except IntegrityError:
        return Past()  # it is known too little of the client then, as at its beginning


def _hold(root: Path, store: Path, change: Change, reasons: tuple[str, ...], policy: Policy) -> tuple[str, ...]:
    """Keep the sync aside; which nights had to go for it, none while the clock of `store` is in doubt.

    The first one stays: it has changed the least.
    """
    now = datetime.now(UTC)
    final = root / f"{HELD}{change.night}"
    if final.exists():
        hide(root / SYNC)  # the same night again
    else:
        write_model(root / SYNC / RECORD, HeldNight(night=change.night, since=now, reasons=reasons, change=change))
        (root / SYNC).rename(final)
    nights = [one.night for one in held(root)]
    too_many = nights[1 : 1 + len(nights) - policy.held_nights] if len(nights) > policy.held_nights else []
    if too_many and store_clock.doubt(store, now) is not None:
        too_many = []
    for night in too_many:
        give_up(root / f"{HELD}{night}", now.date() + timedelta(days=policy.trash_days))
    sync_folder(root)
    return tuple(too_many)


def accept(engine: Engine, night: str | None, reason: str, dry_run: bool = False) -> Decision:
    """Make a held night (by default the newest) the newest restore point; held ones before it go to the trash.

    It joins what is known of the client, so that the like of it is not held again. Once it is a restore point, this
    does what is left to do. Raises UnknownName, and ConfigError when there is a newer restore point by now.
    """
    place, root = engine.ground.place, engine.ground.root
    nights = [one.night for one in at(place, held, root)]
    due = datetime.now(UTC).date() + timedelta(days=engine.ground.policy.trash_days)
    if night is None and not nights:
        return Decision()
    night = night or nights[-1]
    older = tuple(one for one in nights if one < night)
    points = [found for found in engine.points().values() if found]
    there = night in {found.id for found in points}
    if night not in nights and not there:
        raise UnknownName("held night", night, nights)
    moves = [] if there else _taken_in(engine, night, reason, points, dry_run)
    if not dry_run:
        at(place, _settle, root, night, older, due)
    return Decision(tuple(moves), older, due)


def _taken_in(engine: Engine, night: str, reason: str, points: list[NightManifest], dry_run: bool) -> list[Move]:
    """Make a held night the newest point; the moves.

    Its figures first: should this be killed, the like of it is let through, as the operator wants.
    """
    place, root, folder = engine.ground.place, engine.ground.root, f"{HELD}{night}"
    if any(point.id > night for point in points):
        what = "there is a restore point of a later time, which was like the last good one"
        raise ConfigError(
            f"night {night} cannot become the newest", what, "reject it; until it is removed it can be had back"
        )
    moves = engine.planned(folder)  # another engine's night is refused before anything is noted
    if dry_run:
        return moves
    at(place, _remember, root, night, reason)
    return engine.rotate(folder)


def _remember(root: Path, night: str, reason: str) -> None:
    """Note what a held night changed as accepted."""
    change = next((one.change for one in held(root) if one.night == night), None)
    if change is not None:
        write_model(root / PAST, _past(root).with_night(PastNight(change=change, accepted=reason)))


def _settle(root: Path, accepted: str, older: tuple[str, ...], due: date) -> None:
    """What was accepted is a restore point: neither it nor what was held before it waits any more."""
    if (root / f"{HELD}{accepted}").exists():
        hide(root / f"{HELD}{accepted}")
    for night in older:
        give_up(root / f"{HELD}{night}", due)
    sync_folder(root)


def reject(engine: Engine, night: str | None, reason: str, dry_run: bool = False) -> Decision:
    """Put a held night, by default all of them, into the trash; what it was compared with stays pinned for a while.

    Not where the engine keeps what it likes. Raises UnknownName for a night that is not held and was not.
    """
    ground = engine.ground
    return at(ground.place, _reject, ground.root, night, reason, ground.policy.trash_days, engine.forgets, dry_run)


def _reject(root: Path, night: str | None, reason: str, trash_days: int, forgets: bool, dry_run: bool) -> Decision:
    waiting = {one.night: one for one in held(root)}
    if night is not None and night not in waiting:
        if in_trash(root, f"{HELD}{night}"):
            return Decision()
        raise UnknownName("held night", night, list(waiting))
    chosen = [waiting[night]] if night else [*waiting.values()]
    today = datetime.now(UTC).date()
    due = today + timedelta(days=trash_days)
    good = {one.change.against: one.night for one in chosen if one.change and forgets}
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
