"""What rsync's exit statuses mean to us: a table, and whatever it does not name is a failure.

Source: rsync(1), EXIT VALUES; the verdicts are those of a backup: 24 (files vanished while we read) is a warning,
23 (some files could not be transferred) is not a good night.
"""

from enum import Enum


class Verdict(Enum):
    """What a status means for the transfer."""

    GOOD = "good"
    VANISHED = "vanished"
    INCOMPLETE = "incomplete"
    TOO_MANY_DELETIONS = "too many deletions"
    INTERRUPTED = "interrupted"
    LOCAL = "local"
    FAILED = "failed"


STATUS = {
    0: Verdict.GOOD,
    10: Verdict.INTERRUPTED,
    11: Verdict.LOCAL,
    12: Verdict.INTERRUPTED,
    13: Verdict.LOCAL,
    19: Verdict.LOCAL,
    20: Verdict.LOCAL,
    22: Verdict.LOCAL,
    23: Verdict.INCOMPLETE,
    24: Verdict.VANISHED,
    25: Verdict.TOO_MANY_DELETIONS,
    30: Verdict.INTERRUPTED,
    35: Verdict.INTERRUPTED,
    255: Verdict.INTERRUPTED,
}


def verdict(status: int) -> Verdict:
    """The meaning of an exit status; unknown ones have failed."""
    return STATUS.get(status, Verdict.FAILED)
