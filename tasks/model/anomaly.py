"""Whether a night may become a restore point by itself: what changed since the newest one, against what is usual.

What attacks and accidents do, and what ordinary nights do, too, decides which figures are judged (ADR 11 has the
sources, and what is not caught):

- *scrambled* files, plain before and like chance now, are what encryption leaves and next to nothing else does, so the
  limit is low. Upgrades, restores and rotated logs have none to speak of.
- *changed* content is what upgrades bring, too: only much of it counts, and a client that always has it is used to it.
- *deleted* files: what was only moved is not deleted.
- *shrunk*: bytes that are gone, when files are emptied and keep their names. What grew has lost nothing.

A limit is the policy's percentage while little is known of a client. Later it is what is usual, median and median
absolute deviation (one wild night moves neither), between a part of the policy's percentage and the whole of it. What
an operator accepted may come again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from statistics import median

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from tasks.model.names import human_bytes
from tasks.model.retention import Move, Pin

FEW_FILES = 20
"""So few may all be changed, gone or scrambled."""
FEW_BYTES = 64 << 20
"""So few may all be gone."""
KNOWN_NIGHTS = 7
"""From so many on a client's own history counts: a week has each of its days."""
NIGHTS = 60
"""So many are remembered: a monthly job is among them twice."""
DEVIATIONS = 6
"""Nights are not normally distributed; 3.5 is usual for what is (Iglewicz and Hoaglin, 1993)."""
SIGMA = 1.4826
"""Of a normal distribution, in median absolute deviations."""
SLACK = 1.25
"""What was accepted may come again, and that much more of it."""


class Figure(StrEnum):
    """What of a night is judged."""

    SCRAMBLED = "scrambled"
    CHANGED = "changed"
    DELETED = "deleted"
    SHRUNK = "shrunk"


FLOORS = {Figure.SCRAMBLED: 0.1, Figure.CHANGED: 0.5, Figure.DELETED: 0.5, Figure.SHRUNK: 0.5}
"""The part of the policy's percentage that the quietest client may reach: an upgrade is no attack."""
_SAID = {
    Figure.SCRAMBLED: "files were plain and look encrypted now",
    Figure.CHANGED: "files have another content",
    Figure.DELETED: "files are gone",
    Figure.SHRUNK: "are gone",
}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Change(_Record):
    """A night against a restore point: both by their ids; counts are of regular files."""

    night: str
    against: str
    files: int = Field(ge=0)
    files_before: int = Field(ge=0)
    new: int = Field(0, ge=0)
    changed: int = Field(0, ge=0)
    """Of the same name, with another content."""
    deleted: int = Field(0, ge=0)
    """Of which neither the name nor the content is there any more."""
    moved: int = Field(0, ge=0)
    scrambled: int = Field(0, ge=0)
    """Estimated from a sample."""
    size_bytes: int = Field(ge=0)
    size_before: int = Field(ge=0)
    written_bytes: int = Field(0, ge=0)
    """In files that are new or changed."""

    def of(self, figure: Figure) -> tuple[int, int]:
        """How much of how much: files, or bytes."""
        match figure:
            case Figure.SCRAMBLED:
                return self.scrambled, self.files_before
            case Figure.CHANGED:
                return self.changed, self.files_before
            case Figure.DELETED:
                return self.deleted, self.files_before
            case Figure.SHRUNK:
                return max(0, self.size_before - self.size_bytes), self.size_before

    def percent(self, figure: Figure) -> float:
        """How much of what there was."""
        part, whole = self.of(figure)
        return 100 * part / max(1, whole)

    @property
    def text(self) -> str:
        """All of it, for people."""
        files = f"{self.new} new, {self.changed} changed, {self.deleted} deleted, {self.moved} moved files"
        return f"{files}, {self.scrambled} scrambled, {human_bytes(self.written_bytes)} written"


class PastNight(_Record):
    """What a night that became a restore point changed, and why an operator accepted it when it was held."""

    change: Change
    accepted: str = ""


class Past(_Record):
    """What a client's nights changed, oldest first."""

    nights: tuple[PastNight, ...] = ()

    def with_night(self, night: PastNight) -> "Past":
        """With one more, or the same one anew; the oldest are forgotten."""
        others = [one for one in self.nights if one.change.night != night.change.night]
        return Past(nights=(*others, night)[-NIGHTS:])


class HeldNight(_Record):
    """A night that is kept aside, since when, and why; `change` is None when that cannot be read any more."""

    night: str
    since: AwareDatetime
    reasons: tuple[str, ...]
    change: Change | None = None


@dataclass(frozen=True)
class Decision:
    """What an operator's word does with held nights; nothing when none is held."""

    moves: tuple[Move, ...] = ()
    given_up: tuple[str, ...] = ()
    """Nights that go to the trash."""
    due: date | None = None
    """The day from which they may be removed."""
    pinned: tuple[Pin, ...] = ()


def judge(change: Change, past: Past, ceilings: Mapping[Figure, float]) -> list[str]:
    """Why the night should be looked at by somebody; [] when it may become a restore point.

    `ceilings` are the policy's percentages. The night itself does not count in `past`.
    """
    nights = [one for one in past.nights if one.change.night != change.night]
    found = []
    for figure, ceiling in ceilings.items():
        part, whole = change.of(figure)
        percent, (limit, why) = change.percent(figure), limit_of(figure, nights, ceiling)
        if part < (FEW_BYTES if figure is Figure.SHRUNK else FEW_FILES) or percent <= limit:
            continue
        of = f"{human_bytes(part)} of {human_bytes(whole)}" if figure is Figure.SHRUNK else f"{part} of {whole}"
        found.append(f"{of} {_SAID[figure]} ({percent:.3g} %, {limit:.3g} % {why})")
    return found


def limit_of(figure: Figure, nights: list[PastNight], ceiling: float) -> tuple[float, str]:
    """The percentage up to which a night is fine, and what that is."""
    limit, why = ceiling, "is the policy's limit"
    if len(nights) >= KNOWN_NIGHTS:
        values = [night.change.percent(figure) for night in nights]
        middle = median(values)
        usual = middle + DEVIATIONS * SIGMA * median(abs(value - middle) for value in values)
        if (own := max(usual, ceiling * FLOORS[figure])) < ceiling:
            limit, why = own, f"is the limit after its last {len(nights)} nights"
    accepted = max((SLACK * night.change.percent(figure) for night in nights if night.accepted), default=0.0)
    return (accepted, "is the limit after what was accepted") if accepted > limit else (limit, why)
