"""Names for restore points of an engine that has no names of its own for them: rsnapshot's, by the age of the content.

Nothing is stored: names follow from which nights there are, so that what a policy means, what `daily.3` is and what a
rotation gives up are the same for every engine.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from tasks.model.retention import KEPT, SPACING, Retain


def named(contents: Mapping[str, datetime], retain: Sequence[Retain], last: Collection[str] = ()) -> dict[str, str]:
    """The place of each night in rsnapshot's cascade: night → name, newest first; `contents` is night → time.

    The newest are the most frequent points. Of the older ones, beginning with the oldest, those have a place that are
    as far apart as the next interval asks for. The others are `kept.<night>`: a rotation gives them up unless something
    holds them. Nights of `last` (pinned, damaged) take only what no other one needs, so that they displace none.
    """
    by_age = sorted(contents, key=lambda night: (contents[night], night), reverse=True)
    first, *coarser = retain
    names = dict(_places(first, by_age))
    older = by_age[first.count :]
    for row in coarser:
        older = _apart({night: contents[night] for night in older}, SPACING[row.interval], last)
        names.update(_places(row, older))
        older = older[row.count :]
    return {**names, **{night: f"{KEPT}{night}" for night in by_age if night not in names}}


def _places(row: Retain, nights: Sequence[str]) -> Iterable[tuple[str, str]]:
    return ((night, f"{row.interval}.{number}") for number, night in enumerate(nights[: row.count]))


def _apart(contents: Mapping[str, datetime], spacing: timedelta, last: Collection[str]) -> list[str]:
    """Nights that are at least `spacing` apart, newest first."""
    by_age = sorted(contents, key=lambda night: (night in last, contents[night], night))
    found: list[str] = []
    for night in by_age:
        if all(abs(contents[night] - contents[other]) >= spacing for other in found):
            found.append(night)
    return sorted(found, key=lambda night: (contents[night], night), reverse=True)
