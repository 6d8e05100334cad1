"""What is read again tonight: that which was longest unread first, so that each has its turn."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from tasks.model.manifest import ImageManifest


class Verified(BaseModel):
    """When all of an image, or of its replica, was last read and found whole; and what readings found else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    at: datetime
    """Or when it was made, when all of it was not read since."""
    hurt: datetime | None = None
    """When a reading last found damage in it, healed or not."""
    damaged: tuple[str, ...] = ()
    """The files that the last reading left damaged."""


@dataclass(frozen=True)
class Turn:
    """What is read, by the name that it was given, and why."""

    name: str
    reason: str


def choose_turns(
    made: Mapping[str, datetime],
    verified: Mapping[str, datetime],
    now: datetime,
    *,
    older_than_days: int = 0,
    at_most: int | None = None,
) -> list[Turn]:
    """Those whose last full reading (or making, if none) is older than that, the oldest first.

    A time of reading that lies in the future counts as none.
    """
    known = [(_last(made[name], verified.get(name), now), name) for name in made]
    due = sorted((at, name) for at, name in known if now - at >= timedelta(days=older_than_days))
    return [Turn(name, f"last read {at:%Y-%m-%d %H:%M}") for at, name in due[:at_most]]


def key_of(image: ImageManifest) -> str:
    """What an image is called in the record of readings."""
    return f"{image.uuid}/{image.id}"


def _last(made: datetime, read: datetime | None, now: datetime) -> datetime:
    return read if read is not None and read <= now else made
