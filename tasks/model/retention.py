"""When restore points rotate, and how: decided by the age of the content, never by how often cron fired.

The intervals are rsnapshot's, and form its cascade: `daily` pushes every daily point one up; `weekly` takes the oldest
daily and `monthly` the oldest weekly. A rotation is due only when a new verified sync is there to take the freed place.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

SYNC = ".sync"
"""Where rsnapshot makes the next point (sync_first)."""
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

    `points` maps rsnapshot's folder names (`daily.0`) to the time of their content (None: no stamp). `retain` is from
    the most to the least frequent. The answer is empty when the sync is not newer than the newest point, so that a
    client that fails does not move its retention clock.
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
        candidate, latest = points[oldest], points.get(f"{coarser.interval}.0")
        spacing = SPACING[coarser.interval]
        if candidate is not None and latest is not None and candidate - latest < spacing:
            break
        why = f"{oldest} is the first of its kind" if latest is None else f"{oldest} is {spacing.days} days newer"
        due.insert(0, Rotation(coarser.interval, why))
    return due


@dataclass(frozen=True)
class Move:
    """A point gets another name; `to` is None for one that nobody keeps any more."""

    point: str
    to: str | None


def moves(points: Collection[str], retain: Sequence[Retain], due: Sequence[Rotation]) -> list[Move]:
    """The renames of rotations that are due, in the order in which every name is free when it is taken.

    What `rsnapshot <interval>` does with sync_first and link_dest (rsnapshot(1), "HOW IT WORKS").
    """
    names, found = set(points), list[Move]()
    intervals = [row.interval for row in retain]

    def move(point: str, to: str | None) -> None:
        found.append(Move(point, to))
        names.discard(point)
        if to is not None:
            names.add(to)

    for rotation in due:
        row = retain[position := intervals.index(rotation.interval)]
        if (last := f"{row.interval}.{row.count - 1}") in names:
            move(last, None)
        for number in range(row.count - 2, -1, -1):
            if (point := f"{row.interval}.{number}") in names:
                move(point, f"{row.interval}.{number + 1}")
        finer = retain[position - 1]
        oldest = SYNC if position == 0 else f"{finer.interval}.{finer.count - 1}"
        if position == 0 or oldest in names:
            move(oldest, f"{row.interval}.0")
    return found
