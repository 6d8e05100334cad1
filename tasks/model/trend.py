"""When a store will be full, by its level night by night."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING

from tasks.model.room import Level

if TYPE_CHECKING:
    import pandas as pd

LEAST_DAYS = 5
WINDOW_DAYS = 60
FARTHEST_DAYS = 3650


@dataclass(frozen=True)
class Outlook:
    """In how many days a store is full, or why that is not known; what it grows by in a day."""

    days: float | None
    reason: str
    a_day: float | None = None


def outlook(levels: Sequence[Level], reserve_bytes: int) -> Outlook:
    """When the bytes or the inodes run out, whichever is sooner.

    The trend is the median of the slopes between any two of the last WINDOW_DAYS days (Theil and Sen): what is added
    in one night or removed in another bends it little.
    """
    import pandas as pd  # noqa: PLC0415 - a second that a night need not wait

    if not levels:
        return Outlook(None, "no night has been noted")
    rows = [(row.at, row.taken_bytes, row.used_inodes) for row in levels]
    table = pd.DataFrame(rows, columns=["at", "bytes", "inodes"])
    table = table.set_index(pd.to_datetime(table.pop("at"), utc=True)).sort_index()
    daily = table.astype("float64").resample("D").last().dropna(how="all").tail(WINDOW_DAYS)
    newest = max(levels, key=lambda row: row.at)
    size = _runs_out(daily["bytes"].dropna(), newest.left_bytes - reserve_bytes, "bytes")
    if newest.free_inodes is None:
        return size
    inodes = _runs_out(daily["inodes"].dropna(), newest.free_inodes, "inodes")
    if inodes.days is None or (size.days is not None and size.days <= inodes.days):
        return size
    return Outlook(inodes.days, inodes.reason, size.a_day)


def _runs_out(series: "pd.Series[float]", left: int, unit: str) -> Outlook:
    if left <= 0:
        return Outlook(0, f"no {unit} are left")
    days = [moment.timestamp() / 86400 for moment in series.index]
    if len(days) < LEAST_DAYS:
        return Outlook(None, f"{len(days)} of {LEAST_DAYS} days noted")
    points = list(zip(days, series, strict=True))
    slope = median((later - earlier) / (end - begin) for (begin, earlier), (end, later) in combinations(points, 2))
    if slope <= 0:
        return Outlook(None, "it does not grow", slope)
    if left / slope > FARTHEST_DAYS:
        return Outlook(None, "not within ten years", slope)
    return Outlook(left / slope, f"{unit} run out", slope)
