"""What a file system has, how full it was night by night, and what somebody should know of it."""

from pydantic import AwareDatetime, BaseModel, ConfigDict

from tasks.model.names import human_bytes

KEPT_LEVELS = 400


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


class Level(_Record):
    """How full a store was at one time."""

    at: AwareDatetime
    taken_bytes: int
    left_bytes: int
    used_inodes: int | None = None
    free_inodes: int | None = None


class Levels(_Record):
    """How full a store was, night by night."""

    levels: tuple[Level, ...] = ()

    def with_one(self, level: Level) -> "Levels":
        """These and a newer one; of the oldest only so many are kept."""
        return Levels(levels=(*self.levels, level)[-KEPT_LEVELS:])


def level_of(room: Room, at: AwareDatetime) -> Level:
    """How full it was then."""
    used = room.inodes - room.free_inodes if room.inodes is not None and room.free_inodes is not None else None
    return Level(
        at=at, taken_bytes=room.taken_bytes, left_bytes=room.left_bytes, used_inodes=used, free_inodes=room.free_inodes
    )


def doubts(room: Room, reserve_bytes: int) -> list[str]:
    """What somebody should do something about, a line each."""
    found = []
    if room.left_bytes < reserve_bytes:
        kept, left = human_bytes(reserve_bytes), human_bytes(room.left_bytes)
        found.append(f"{left} are left, less than the reserve of {kept}: no client is begun")
    if room.unread:
        found.append(f"it lies on VDO, and what df shows as free may not be: {room.unread}")
    if room.vdo and room.vdo.mode != "normal":
        found.append(
            f"its VDO volume {room.vdo.pool} is in mode {room.vdo.mode}: look at it before anything is written"
        )
    return found


def remarks(room: Room) -> list[str]:
    """What explains the figures of a store on VDO, a line each."""
    found = []
    if (vdo := room.vdo) and vdo.free_bytes < room.free_bytes:
        shown, has = human_bytes(room.free_bytes), human_bytes(vdo.free_bytes)
        found.append(f"df shows {shown} free, VDO has {has}: what is new must fit into that")
    if vdo and vdo.logical_bytes > room.used_bytes + (1 << 30) + room.used_bytes // 10:
        gone = human_bytes(vdo.logical_bytes - room.used_bytes)
        found.append(f"VDO holds {gone} that were removed since: fstrim -v gives them back")
    return found
