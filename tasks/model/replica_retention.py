"""Which replicas of a VM's images the permanent store keeps, decided by what lies there, never by what is gone here.

No replica needs another one: each is a whole disk (ADR 7), and blocks that a file system shares stay as long as any
file has them. But sharing is why damage in one puts the others in doubt until they are read: it may be theirs, too.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from tasks.model.retention import Pin

READ = "gbs verify replicas"


@dataclass(frozen=True)
class Replica:
    """The replica of an image; or an image that has none yet, as if it had one."""

    id: str
    place: str
    """Where it lies below the permanent store."""
    flavour: str | None
    """Of the image; None when its manifest cannot be read."""
    there: bool = True
    read: datetime | None = None
    """When all of it was last read and found whole, or healed."""
    hurt: datetime | None = None
    """When a reading last found damage in it that was not known, healed or not."""
    damaged: tuple[str, ...] = ()
    """What the last reading left damaged."""
    pin: Pin | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a replica stays, or is made, and why."""

    replica: Replica
    stays: bool
    reason: str

    @property
    def next(self) -> str:
        """What the next replication does, for people."""
        verb = (
            ("stays" if self.stays else "goes") if self.replica.there else ("is made" if self.stays else "is not made")
        )
        return f"{verb}: {self.reason}"


def judge(
    replicas: Sequence[Replica], count: int, flavours: Collection[str], now: datetime, doubt: str | None = None
) -> list[Verdict]:
    """Every replica of one VM, newest first, and whether it stays.

    The newest stay, until `count` of them are sound; of each disk layout (`flavours`) that a night has, the newest
    sound one, so that this night can be recovered; what is pinned. With `doubt`, a reason, all that lies there stays.
    """
    found, sound, needed = [], 0, set(flavours)
    last_hurt = max((one.hurt for one in replicas if one.hurt is not None), default=None)
    for replica in sorted(replicas, key=lambda one: (one.id, one.place), reverse=True):
        bad = why_unsound(replica, last_hurt)
        serves = {flavour for flavour in needed if replica.flavour in ("", flavour)}
        if doubt is not None and replica.there:
            reason = doubt
        elif replica.pin is not None and replica.pin.holds(now):
            reason = replica.pin.text
        elif replica.flavour is None:
            reason = str(bad)
        elif sound < count:
            reason = f"{bad}; of newer ones {sound} are sound" if bad else f"the newest {count} that are sound are kept"
        elif serves:
            reason = f"nights with disk layout {', '.join(sorted(serves)) or 'unknown'} have no newer one"
        else:
            found.append(Verdict(replica, stays=False, reason=f"{sound} newer ones are sound"))
            continue
        found.append(Verdict(replica, stays=True, reason=reason))
        if bad is None:
            sound, needed = sound + 1, needed - serves
    return found


def why_unsound(replica: Replica, last_hurt: datetime | None) -> str | None:
    """Why a VM cannot be sure to come back from it; None when it can. `last_hurt` is the last damage in any of its."""
    if replica.flavour is None:
        return f"its manifest cannot be read; {READ}"
    if replica.damaged:
        return f"damaged: {', '.join(replica.damaged)}"
    if last_hurt is not None and (replica.read is None or replica.read < last_hurt):
        return f"not read since damage was found in one of them; {READ}"
    return None
