"""What a store's bytes are: each name by itself, what hard links, shared extents and VDO leave of it, and whose it is.

All sizes are allocated bytes, as du(1) counts them: folders are counted, holes are not.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from pydantic import AwareDatetime, BaseModel, ConfigDict

from tasks.model.facts_mounts import FileSystem
from tasks.model.manifest import NightCost
from tasks.model.names import human_bytes

KEPT_SAMPLES = 400
KEPT_COSTS = 7
Extent = tuple[int, int]
"""Where some of a file's bytes lie on the device, and how many."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VdoUsage(_Record):
    """What a VDO volume says of itself (vdostats): the whole device's, in bytes."""

    pool: str
    """The device mapper's name of the pool."""
    mode: str
    """`normal`; `read-only` when it is damaged."""
    size_bytes: int
    overhead_bytes: int
    """Its index and its own records."""
    data_bytes: int
    """What the data takes, each block once, compressed."""
    logical_bytes: int
    """What lies on it, as whoever wrote it sees it."""

    @property
    def free_bytes(self) -> int:
        """What may still be written, should nothing of it be known already."""
        return self.size_bytes - self.overhead_bytes - self.data_bytes

    @property
    def saved_bytes(self) -> int:
        """What deduplication and compression saved."""
        return self.logical_bytes - self.data_bytes


class Room(_Record):
    """What a file system has; with VDO beneath, what that has is what counts."""

    size_bytes: int
    used_bytes: int
    free_bytes: int
    inodes: int | None
    """None where they are made as they are needed (btrfs)."""
    free_inodes: int | None
    source: str = ""
    fstype: str = ""
    vdo: VdoUsage | None = None
    unread: str = ""
    """Why VDO lies beneath and does not say what it has."""

    @property
    def left_bytes(self) -> int:
        """What can be written: a file system on VDO has room that its device has not."""
        return min(self.free_bytes, self.vdo.free_bytes) if self.vdo else self.free_bytes

    @property
    def taken_bytes(self) -> int:
        """What is taken of that which `left_bytes` is left of."""
        vdo = self.vdo
        return vdo.overhead_bytes + vdo.data_bytes if vdo and vdo.free_bytes < self.free_bytes else self.used_bytes


class Sample(_Record):
    """How full a store was at one time."""

    at: AwareDatetime
    taken_bytes: int
    left_bytes: int
    used_inodes: int | None = None
    free_inodes: int | None = None


class Samples(_Record):
    """How full a store was, night by night."""

    samples: tuple[Sample, ...] = ()

    def with_one(self, sample: Sample) -> "Samples":
        """These and a newer one; of the oldest only so many are kept."""
        return Samples(samples=(*self.samples, sample)[-KEPT_SAMPLES:])


def sample_of(room: Room, at: AwareDatetime) -> Sample:
    """How full it was then."""
    used = room.inodes - room.free_inodes if room.inodes is not None and room.free_inodes is not None else None
    return Sample(
        at=at, taken_bytes=room.taken_bytes, left_bytes=room.left_bytes, used_inodes=used, free_inodes=room.free_inodes
    )


@dataclass(frozen=True)
class Tree:
    """A folder of an owner, and what was in none of its folders that were walked before."""

    name: str
    new_bytes: int
    new_inodes: int


@dataclass(frozen=True)
class Walked:
    """What was found in the folders of one owner on one file system."""

    owner: str
    each_bytes: int
    """Every name by itself (du -l)."""
    once_bytes: int
    """Every inode once (du)."""
    inodes: int
    trees: tuple[Tree, ...]
    elsewhere: Mapping[int, int]
    """Inodes that have names outside these folders too, and their bytes."""
    shared: Mapping[int, tuple[Extent, ...]]
    """Inodes with extents that are not theirs alone (FIEMAP_EXTENT_SHARED)."""


class Cost(_Record):
    """What an owner's folders come to."""

    owner: str
    each_bytes: int
    once_bytes: int
    own_bytes: int
    """What would be free without them."""
    inodes: int
    newest: str
    """The newest restore point or the like, and what it added to those before it."""
    newest_bytes: int
    given_up_bytes: int
    """What only hidden folders hold: restore points in the trash, what failed runs left."""


class Tally(_Record):
    """What a store's folders come to, and what is left of that after hard links and after shared extents."""

    at: AwareDatetime
    each_bytes: int
    once_bytes: int
    extents_bytes: int
    reflinks_seen: bool
    """Whether the file system knows shared extents."""
    costs: tuple[Cost, ...]


def tally(walks: Sequence[Walked], at: AwareDatetime, *, reflinks_seen: bool) -> Tally:
    """Put together what was found of each owner on one file system; what two of them share is counted once."""
    elsewhere = {inode: size for walk in walks for inode, size in walk.elsewhere.items()}
    twice = sum(size for walk in walks for size in walk.elsewhere.values()) - sum(elsewhere.values())
    once = sum(walk.once_bytes for walk in walks) - twice
    holders: dict[int, str | None] = {}
    extents: dict[int, tuple[Extent, ...]] = {}
    for walk in walks:
        for inode, found in walk.shared.items():
            holders[inode] = None if inode in elsewhere else walk.owner
            extents[inode] = found
    saved, alone = _shared(holders, extents)
    return Tally(
        at=at,
        each_bytes=sum(walk.each_bytes for walk in walks),
        once_bytes=once,
        extents_bytes=once - saved,
        reflinks_seen=reflinks_seen,
        costs=tuple(_cost(walk, alone[walk.owner]) for walk in walks),
    )


def _cost(walk: Walked, alone_bytes: int) -> Cost:
    """`alone_bytes` are those of its shared extents that nobody else's files have."""
    linked = sum(walk.elsewhere.values())
    reflinked = sum(length for inode, rows in walk.shared.items() if inode not in walk.elsewhere for _, length in rows)
    hidden = [tree for tree in walk.trees if tree.name.startswith(".")]
    newest = next((tree for tree in reversed(walk.trees) if tree not in hidden), Tree("", 0, 0))
    return Cost(
        owner=walk.owner,
        each_bytes=walk.each_bytes,
        once_bytes=walk.once_bytes,
        own_bytes=max(0, walk.once_bytes - linked - reflinked + alone_bytes),
        inodes=walk.inodes,
        newest=newest.name,
        newest_bytes=newest.new_bytes,
        given_up_bytes=sum(tree.new_bytes for tree in hidden),
    )


def _shared(
    holders: Mapping[int, str | None], extents: Mapping[int, Sequence[Extent]]
) -> tuple[int, Mapping[str | None, int]]:
    """What is saved where several files have the same bytes of the device, and what lies under one holder's alone."""
    events: dict[int, list[tuple[str | None, int]]] = defaultdict(list)
    for inode, rows in extents.items():
        for start, length in rows:
            events[start].append((holders[inode], 1))
            events[start + length].append((holders[inode], -1))
    saved, alone = 0, Counter[str | None]()
    there: Counter[str | None] = Counter()
    for start, end in pairwise(sorted(events)):
        for holder, change in events[start]:
            there[holder] += change
            if not there[holder]:
                del there[holder]
        files = sum(there.values())
        saved += max(0, files - 1) * (end - start)
        if len(there) == 1:
            alone[next(iter(there))] += end - start
    return saved, alone


@dataclass(frozen=True)
class Saving:
    """What a mechanism saved and what was left then; None where that is not known, and why."""

    mechanism: str
    saved_bytes: int | None
    left_bytes: int | None
    note: str = ""


NOT_MEASURED = "not measured: gbs space --deep"


def savings(room: Room, measured: Tally | None) -> list[Saving]:
    """What each mechanism saves on a file system, from what is nearest to the files to what is nearest to the disk."""
    remote = room.fstype.startswith("nfs")
    unseen = "not visible over NFS: ask its server"
    if measured is None:
        rows = [Saving(mechanism, None, None, NOT_MEASURED) for mechanism in ("hard links", "reflinks")]
    else:
        rows = [Saving("hard links", measured.each_bytes - measured.once_bytes, measured.once_bytes)]
        why = unseen if remote else f"{room.fstype} knows none"
        reflinked = Saving("reflinks", measured.once_bytes - measured.extents_bytes, measured.extents_bytes)
        rows.append(reflinked if measured.reflinks_seen else Saving("reflinks", None, None, why))
    if room.vdo is None:
        why = unseen if remote else "its volume does not answer" if room.unread else "it does not lie on VDO"
        return [*rows, Saving("VDO", None, None, why)]
    return [*rows, Saving("VDO", room.vdo.saved_bytes, room.vdo.data_bytes, f"of the whole volume {room.vdo.pool}")]


def doubts(room: Room, reserve_bytes: int) -> list[str]:
    """What somebody who looks after a store should know of its room, a line each."""
    found = []
    if room.left_bytes < reserve_bytes:
        kept, left = human_bytes(reserve_bytes), human_bytes(room.left_bytes)
        found.append(f"{left} are left, less than the reserve of {kept}: no client is begun")
    if room.unread:
        found.append(f"it lies on VDO, and what df shows as free may not be: {room.unread}")
    if (vdo := room.vdo) is None:
        return found
    if vdo.mode != "normal":
        found.append(f"its VDO volume {vdo.pool} is in mode {vdo.mode}: look at it before anything is written")
    if vdo.free_bytes < room.free_bytes:
        shown, has = human_bytes(room.free_bytes), human_bytes(vdo.free_bytes)
        found.append(f"df shows {shown} free, VDO has {has}: what is new must fit into that")
    if vdo.logical_bytes > room.used_bytes + (1 << 30) + room.used_bytes // 10:
        gone = human_bytes(vdo.logical_bytes - room.used_bytes)
        found.append(f"VDO holds {gone} that were removed since: fstrim -v gives them back")
    return found


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
