"""What a store's bytes are: each name by itself, what hard links, shared extents and VDO leave of it, and whose it is.

All sizes are allocated bytes, as du(1) counts them: folders are counted, holes are not.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import AwareDatetime, BaseModel, ConfigDict

from tasks.model.room import Room

GIVEN_UP = (".trash-", ".delete-", "_delete.")
"""How the names of what is to be removed begin (tasks.drivers.restore_points)."""
Extent = tuple[int, int]
"""Where some of a file's bytes lie on the device, and how many."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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
    """What only restore points in the trash hold, and what failed runs left."""


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
    newest = next((tree for tree in reversed(walk.trees) if tree.name[:1] not in "._"), Tree("", 0, 0))
    return Cost(
        owner=walk.owner,
        each_bytes=walk.each_bytes,
        once_bytes=walk.once_bytes,
        own_bytes=max(0, walk.once_bytes - linked - reflinked + alone_bytes),
        inodes=walk.inodes,
        newest=newest.name,
        newest_bytes=newest.new_bytes,
        given_up_bytes=sum(tree.new_bytes for tree in walk.trees if tree.name.startswith(GIVEN_UP)),
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
