"""When rsnapshot rotates: decided by the age of the content, never by how often cron fired.

rsnapshot's intervals form a cascade: `daily` pushes every daily point one up; `weekly` takes the oldest daily and
`monthly` the oldest weekly. A rotation is due only when a new verified sync is there to take the freed place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

SPACING = {"weekly": timedelta(days=7), "monthly": timedelta(days=28)}


@dataclass(frozen=True)
class Retain:
    """How many points of an interval are kept, as in rsnapshot's `retain`."""

    interval: str
    count: int


@dataclass(frozen=True)
class Rotation:
    """One rsnapshot rotation to run, and why."""

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
