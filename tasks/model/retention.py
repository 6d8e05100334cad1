"""When restore points rotate, and how: decided by the age of the content, never by how often cron fired.

The intervals are rsnapshot's, and form its cascade: `daily` pushes every daily point one up; `weekly` takes the oldest
daily and `monthly` the oldest weekly. A rotation is due only when a new verified sync is there to take the freed place.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import count, pairwise

from pydantic import AwareDatetime, BaseModel, ConfigDict

SYNC = ".sync"
"""Where rsnapshot makes the next point (sync_first)."""
KEPT = "kept."
_KEPT_NIGHT = re.compile(re.escape(KEPT) + r"(\d{8}T\d{6}Z)(-[0-9a-f]{8})?")
SPACING = {"weekly": timedelta(days=7), "monthly": timedelta(days=28)}


@dataclass(frozen=True)
class Retain:
    """How many points of an interval are kept, as in rsnapshot's `retain`."""

    interval: str
    count: int


@dataclass(frozen=True)
class Rotation:
    """One rotation, and why."""

    interval: str
    reason: str


def due_rotations(
    points: Mapping[str, datetime | None],
    retain: Sequence[Retain],
    synced: datetime,
) -> list[Rotation]:
    """The rotations to run, in order, for a sync whose content is of `synced`.

    `points` maps rsnapshot's folder names (`daily.0`) to the time of their content (None: not known; one such goes to
    no coarser interval). `retain` is from the most to the least frequent. The answer is empty when the sync is not
    newer than the newest point, so that a client that fails does not move its retention clock.
    """
    first = retain[0]
    newest = points.get(f"{first.interval}.0")
    if newest is not None and synced <= newest:
        return []
    due = [Rotation(first.interval, f"new content of {synced:%Y-%m-%d %H:%M}")]
    for finer, coarser in pairwise(retain):
        oldest = f"{finer.interval}.{finer.count - 1}"
        if oldest not in points:
            break
        candidate, latest, spacing = points[oldest], _latest(points, coarser), SPACING[coarser.interval]
        if candidate is None or (latest is not None and candidate - latest < spacing):
            break
        why = f"{oldest} is the first of its kind" if latest is None else f"{oldest} is {spacing.days} days newer"
        due.insert(0, Rotation(coarser.interval, why))
    return due


def _latest(points: Mapping[str, datetime | None], row: Retain) -> datetime | None:
    """The newest content of an interval; where that is not known, at least its spacing newer than the next one's."""
    there = [points[name] for number in range(row.count) if (name := f"{row.interval}.{number}") in points]
    known = (content + newer * SPACING[row.interval] for newer, content in enumerate(there) if content is not None)
    return next(known, None)


class Pin(BaseModel):
    """A night that is kept until the end of a day, whatever the rules say, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    night: str
    until: date
    reason: str

    def holds(self, now: datetime) -> bool:
        """Whether it still does."""
        return now.date() <= self.until

    @property
    def text(self) -> str:
        """Until when, and why."""
        return f"pinned {'for now' if self.until == date.max else f'until {self.until}'}: {self.reason}"


class Pins(BaseModel):
    """The pinned nights of a client."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pins: tuple[Pin, ...] = ()


class Reading(BaseModel):
    """When the files of a night were last read where they lie, how much of them, and what stays damaged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: AwareDatetime
    percent: float
    damaged: tuple[str, ...] = ()


class Readings(BaseModel):
    """The last reading of each of a client's nights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nights: dict[str, Reading] = {}


@dataclass(frozen=True)
class Point:
    """A restore point: `daily.0`, or `kept.<night>` for one that has left the cascade and is not given up."""

    name: str
    night: str | None = None
    """The id of the night that its stamp, or else its name, names; None when neither does."""
    content: datetime | None = None
    """When its content was pulled."""
    pin: Pin | None = None
    damaged: bool = False
    """Whether the last reading found files that are not what their listing says, and no good copy of them."""
    unreadable: bool = False
    """Whether it may be a pinned one: its stamp cannot be read, or is gone while a pinned night is missed."""

    @property
    def sound(self) -> bool:
        """Whether it can be recovered from, as far as is known."""
        return self.night is not None and not self.damaged and not self.unreadable


@dataclass(frozen=True)
class Rules:
    """How many points of each interval are kept, from the most to the least frequent, and the least of sound ones."""

    retain: tuple[Retain, ...]
    least: int


@dataclass(frozen=True)
class Move:
    """A point gets another name, and why; `to` is None for one that is given up."""

    point: str
    to: str | None
    reason: str


def plan(
    points: Sequence[Point],
    rules: Rules,
    synced: datetime,
    now: datetime,
    sync: str = SYNC,
    doubt: str | None = None,
) -> list[Move]:
    """The renames for a sync whose content is of `synced`, in the order in which every name is free when it is taken.

    `sync` is where that lies.
    [] when the sync is not newer than the newest point. Otherwise what rsnapshot's rotations do (rsnapshot(1), "HOW
    IT WORKS"), but a point that would go stays as `kept.<night>` while it is pinned, or while fewer than `rules.least`
    sound ones would be left, or for a reason to doubt `now`, or as its stamp cannot be read; and what a policy that was
    made smaller no longer keeps goes, too.
    """
    due = due_rotations({point.name: point.content for point in points if _interval(point)}, rules.retain, synced)
    if not due:
        return []
    moves = [Move(point.name, None, "") for point in points if point.name.startswith(KEPT)]
    moves += [*_beyond(points, rules.retain), *_cascade(points, rules.retain, due, sync)]
    leaving = {move.point for move in moves if move.to is None}
    left = 1 + sum(point.sound for point in points if point.name not in leaving)
    stays: dict[str, str] = {}
    held: set[str | None] = set()
    for point in sorted(points, key=lambda point: (point.night or "", point.sound, point.name), reverse=True):
        if point.name not in leaving or point.night in held or (point.night is None and not point.unreadable):
            continue
        if doubt is not None:
            stays[point.name] = f"the clock is in doubt: {doubt}"
        elif point.pin is not None and point.pin.holds(now):
            stays[point.name] = point.pin.text
        elif point.sound and left < rules.least:
            stays[point.name] = f"only {left} others are sound, and {rules.least} are the least"
        elif point.unreadable:
            stays[point.name] = "its manifest cannot be read"
        if point.name in stays and point.night is not None:
            left += point.sound
            held.add(point.night)
    nights = _kept_names(points)
    found = []
    for move in moves:
        if move.to is not None or move.point not in stays:
            found.append(move if move.reason else Move(move.point, None, "nothing keeps it any more"))
        elif move.point != nights[move.point]:
            found.append(Move(move.point, nights[move.point], stays[move.point]))
    return found


def night_of(name: str) -> str | None:
    """The night that the name of a point outside of the cascade tells, also of one that a killed rotation left."""
    found = _KEPT_NIGHT.fullmatch(name)
    return found[1] if found else None


def _kept_names(points: Sequence[Point]) -> dict[str, str]:
    """What each point is called outside of the cascade."""
    names = {point.name for point in points}
    free = (name for number in count() if (name := f"{KEPT}unknown.{number}") not in names)
    return {
        point.name: f"{KEPT}{point.night}" if point.night else next(free) if _interval(point) else point.name
        for point in points
    }


def _interval(point: Point) -> bool:
    return not point.name.startswith(KEPT)


def _beyond(points: Sequence[Point], retain: Sequence[Retain]) -> list[Move]:
    """What the policy has no place for: an interval, or so many of it."""
    counts = {row.interval: row.count for row in retain}
    return [
        Move(point.name, None, f"the policy keeps {counts.get(interval, 0)} {interval} points")
        for point in points
        if _interval(point)
        for interval, _, number in [point.name.partition(".")]
        if int(number) >= counts.get(interval, 0)
    ]


def _cascade(points: Sequence[Point], retain: Sequence[Retain], due: Sequence[Rotation], sync: str) -> list[Move]:
    names = {point.name for point in points}
    found: list[Move] = []

    def move(point: str, to: str | None, reason: str) -> None:
        found.append(Move(point, to, reason))
        names.discard(point)
        if to is not None:
            names.add(to)

    intervals = [row.interval for row in retain]
    for rotation in due:
        row = retain[position := intervals.index(rotation.interval)]
        if (last := f"{row.interval}.{row.count - 1}") in names:
            move(last, None, f"{row.count} newer {row.interval} points are there")
        for number in range(row.count - 2, -1, -1):
            if (point := f"{row.interval}.{number}") in names:
                move(point, f"{row.interval}.{number + 1}", "a newer one takes its place")
        finer = retain[position - 1]
        oldest = sync if position == 0 else f"{finer.interval}.{finer.count - 1}"
        if position == 0 or oldest in names:
            move(oldest, f"{row.interval}.0", rotation.reason)
    return found


def after(points: Sequence[Point], moves: Sequence[Move], new: Point) -> list[Point]:
    """The points when `moves` were made; `new` is what was in `.sync`."""
    there = {SYNC: new, **{point.name: point for point in points}}
    for move in moves:
        point = there.pop(move.point)
        if move.to is not None:
            there[move.to] = replace(point, name=move.to)
    there.pop(SYNC, None)
    return list(there.values())
