"""Whether this machine's clock can be believed, by what the permanent store knows of the time.

Pins and the trash go by days. A clock that is wrong for a while must neither end a pin nor empty the trash: so the
latest time that was seen is remembered in the store (the time of the file `.gbs-clock`), and the clock is compared with
that, and with the time that a file gets there when it is touched (`.gbs-clock-asked`), which a file server takes from
its own clock. Both files last: a store that has no room for a new one is the one to be tidied. Functions that are given
a root touch the permanent store and are called by `tasks.drivers.permanent.at`.
"""

import errno
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tasks.drivers.permanent import PermanentPlace, at, prove
from tasks.errors import ClockDoubted

SEEN, ASKED = ".gbs-clock", ".gbs-clock-asked"
JUMP = timedelta(days=10)
"""More than from one week's run to the next; a pause that is longer is for an operator to confirm."""
APART = timedelta(days=1)
_NO_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
CONFIRM = "if the clock is right: gbs store clock --confirm"


@dataclass(frozen=True)
class Clock:
    """The time by this machine, by the file system of the permanent store, and the latest that was seen there."""

    ours: datetime
    theirs: datetime | None
    """None when it was not asked, or nothing can be written there."""
    seen: datetime | None

    @property
    def apart(self) -> str | None:
        """Why one of the two clocks is wrong; None while they agree, as far as is known."""
        if self.theirs is None or abs(self.ours - self.theirs) <= APART:
            return None
        return f"it says {self.ours:%Y-%m-%d %H:%M}, and that of the store {self.theirs:%Y-%m-%d %H:%M}; correct it"

    @property
    def doubt(self) -> str | None:
        """Why nothing may be given up by this clock; None when it can be believed."""
        if self.apart is not None or self.seen is None or abs(self.ours - self.seen) <= JUMP:
            return self.apart
        return f"it says {self.ours:%Y-%m-%d}, and the latest time seen before is {self.seen:%Y-%m-%d}; {CONFIRM}"


def known(root: Path, ours: datetime) -> Clock:
    """The clocks as far as can be told without a write: the store's own is not asked."""
    try:
        seen = datetime.fromtimestamp((root / SEEN).stat().st_mtime, UTC)
    except FileNotFoundError:
        seen = None
    return Clock(ours, None, seen)


def read(root: Path, ours: datetime) -> Clock:
    """The clocks; the time is not remembered."""
    return replace(known(root, ours), theirs=_ask(root))


def _ask(root: Path) -> datetime | None:
    try:
        _touch(root / ASKED)
        return datetime.fromtimestamp((root / ASKED).stat().st_ctime, UTC)
    except OSError as exc:
        if exc.errno in _NO_WRITE:
            return None
        raise


def confirm(root: Path, ours: datetime) -> Clock:
    """The clocks, when the time is remembered as it is now, whatever was seen before; not while they are apart."""
    clock = read(root, ours)
    if clock.apart is not None:
        return clock
    _remember(root, ours)
    return replace(clock, seen=ours)


def doubt(root: Path, ours: datetime) -> str | None:
    """Why nothing may be given up by the clock; None when it can be believed: the time is remembered if that can be."""
    clock = read(root, ours)
    if clock.doubt is None and (clock.seen is None or ours > clock.seen):
        try:
            _remember(root, ours)
        except OSError as exc:
            if exc.errno not in _NO_WRITE:
                raise
    return clock.doubt


def require(place: PermanentPlace) -> None:
    """Raise ClockDoubted unless the clock can be believed, and what `prove` raises."""
    prove(place)
    if (why := at(place, doubt, place.path, datetime.now(UTC))) is not None:
        raise ClockDoubted(str(place.path), why)


def _remember(root: Path, time: datetime) -> None:
    """One system call once the file is there: who else does it at the same time, or is killed, leaves no half of it.

    A kill before leaves the time of a new file, by the store's clock, which is not a day apart from ours.
    """
    _touch(root / SEEN, (time.timestamp(), time.timestamp()))


def _touch(path: Path, times: tuple[float, float] | None = None) -> None:
    """Set a file's times, by default to the store's; Path.touch would not tell that they stay as they are."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    os.utime(path, times)
