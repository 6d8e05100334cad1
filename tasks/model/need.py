"""What a client's next night is expected to add to the store."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from tasks.model.facts_mounts import FileSystem
from tasks.model.manifest import NightCost
from tasks.model.names import human_bytes

KEPT_COSTS = 7


@dataclass(frozen=True)
class Need:
    """What something that is about to begin is expected to add, and why that is believed."""

    size_bytes: int
    inodes: int
    why: str


def next_night(costs: Sequence[NightCost]) -> Need | None:
    """What a client's next night is expected to add: the median of the last ones. None when there are none."""
    if not costs:
        return None
    size_bytes = int(median(cost.new_bytes for cost in costs))
    inodes = int(median(cost.new_inodes for cost in costs))
    return Need(size_bytes, inodes, f"{human_bytes(size_bytes)} by its last {len(costs)} nights")


def first_night(file_systems: Iterable[FileSystem], paths: Sequence[str], excluded: Sequence[str]) -> Need:
    """What a client's first night is expected to add: what is used on the file systems that are pulled whole."""
    left_out = {pattern.removesuffix("/**").removesuffix("/*").rstrip("/") for pattern in excluded}
    used = sum(row.used_bytes for row in file_systems if row.mountpoint in paths and row.mountpoint not in left_out)
    return Need(used, 0, f"{human_bytes(used)} by its facts")
