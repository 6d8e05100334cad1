"""Outcomes: what became of a client in a stage, and what a whole run ends as."""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Outcome(StrEnum):
    """How a stage ended for a client, from best to worst."""

    OK = "OK"
    SKIPPED = "SKIPPED"
    WARNING = "WARNING"
    PARTIAL = "PARTIAL"
    MISSED = "MISSED"
    FAILED = "FAILED"


ORDER = list(Outcome)
EXIT_CODES = {
    Outcome.OK: 0,
    Outcome.SKIPPED: 0,
    Outcome.WARNING: 3,
    Outcome.PARTIAL: 3,
    Outcome.MISSED: 1,
    Outcome.FAILED: 1,
}
"""The exit code of a run whose worst outcome is this one (DESIGN: 0 OK, 1 failed, 3 done with warnings or partly)."""


class StageResult(BaseModel):
    """What one stage did for one client; `reasons` is never empty unless the outcome is OK."""

    model_config = ConfigDict(frozen=True)

    client: str
    stage: str
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    started: datetime
    ended: datetime
    bytes_moved: int = 0
    produced: str = ""
    """The night, restore point or image that was published, or empty."""

    @property
    def duration_s(self) -> float:
        """Seconds from start to end."""
        return (self.ended - self.started).total_seconds()


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome that decides for all of them; OK when there is none."""
    return max(outcomes, key=ORDER.index, default=Outcome.OK)


def combined(outcomes: Iterable[Outcome]) -> Outcome:
    """What several stages come to: the worst of those that ran; SKIPPED when none did."""
    found = list(outcomes)
    ran = [outcome for outcome in found if outcome is not Outcome.SKIPPED]
    return worst(ran) if ran or not found else Outcome.SKIPPED


def exit_code(results: Iterable[StageResult]) -> int:
    """The exit code of a run with these results."""
    return EXIT_CODES[worst(result.outcome for result in results)]
