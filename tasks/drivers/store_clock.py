"""Whether this machine's clock can be believed, by what the permanent store knows of the time.

Pins and the trash go by days. A clock that is wrong for a while must neither end a pin nor empty the trash: so the
latest time that was seen is remembered in the store (the time of the file `.gbs-clock`), and the clock is compared with
that, and with the time that a new file gets there, which a file server takes from its own clock. Functions that are
given a root touch the permanent store and are called by `tasks.drivers.permanent.at`.
"""

import os
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tasks.drivers.permanent import PermanentPlace, at, prove
from tasks.errors import ClockDoubted

SEEN = ".gbs-clock"
JUMP = timedelta(days=10)
"""More than from one week's run to the next; a pause that is longer is for an operator to confirm."""
APART = timedelta(days=1)
CONFIRM = "if the clock is right: gbs store clock --confirm"


@dataclass(frozen=True)
class Clock:
    """The time by this machine, by the file system of the permanent store, and the latest that was seen there."""

    ours: datetime
    theirs: datetime
    seen: datetime | None

    @property
    def apart(self) -> str | None:
        """Why one of the two clocks is wrong; None while they agree."""
        if abs(self.ours - self.theirs) <= APART:
            return None
        return f"it says {self.ours:%Y-%m-%d %H:%M}, and that of the store {self.theirs:%Y-%m-%d %H:%M}; correct it"

    @property
    def doubt(self) -> str | None:
        """Why nothing may be given up by this clock; None when it can be believed."""
        if self.apart is not None or self.seen is None or abs(self.ours - self.seen) <= JUMP:
            return self.apart
        return f"it says {self.ours:%Y-%m-%d}, and the latest time seen before is {self.seen:%Y-%m-%d}; {CONFIRM}"


def read(root: Path, ours: datetime) -> Clock:
    """The clocks; nothing is remembered."""
    with tempfile.NamedTemporaryFile(dir=root, prefix=f"{SEEN}-") as file:
        theirs = datetime.fromtimestamp(os.fstat(file.fileno()).st_ctime, UTC)
    try:
        seen = datetime.fromtimestamp((root / SEEN).stat().st_mtime, UTC)
    except FileNotFoundError:
        seen = None
    return Clock(ours, theirs, seen)


def confirm(root: Path, ours: datetime) -> Clock:
    """The clocks, when the time is remembered as it is now, whatever was seen before; not while they are apart."""
    clock = read(root, ours)
    if clock.apart is not None:
        return clock
    _remember(root, ours)
    return replace(clock, seen=ours)


def doubt(root: Path, ours: datetime) -> str | None:
    """Why nothing may be given up by the clock; None when it can be believed, and then the time is remembered."""
    clock = read(root, ours)
    if clock.doubt is None and (clock.seen is None or ours > clock.seen):
        _remember(root, ours)
    return clock.doubt


def require(place: PermanentPlace) -> None:
    """Raise ClockDoubted unless the clock can be believed, and what `prove` raises."""
    prove(place)
    if (why := at(place, doubt, place.path, datetime.now(UTC))) is not None:
        raise ClockDoubted(str(place.path), why)


def _remember(root: Path, time: datetime) -> None:
    """One system call: whoever else does it at the same time, or is killed, leaves no half of it."""
    (root / SEEN).touch(mode=0o600)
    os.utime(root / SEEN, (time.timestamp(), time.timestamp()))
