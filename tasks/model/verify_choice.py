"""Which images are read again tonight: those longest unread first, so that each has its turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from tasks.model.manifest import ImageManifest


class Verified(BaseModel):
    """When all of an image was last read and found whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    at: datetime


@dataclass(frozen=True)
class Turn:
    """An image to read, and why."""

    image: ImageManifest
    reason: str


def choose_turns(
    images: Sequence[ImageManifest],
    verified: Mapping[str, datetime],
    now: datetime,
    *,
    older_than_days: int = 0,
    at_most: int | None = None,
) -> list[Turn]:
    """The images whose last full reading (or making, if none) is older than that, the oldest first.

    `verified` maps `<vm uuid>/<image id>` to the time of the last reading. A time of the future counts as none.
    """
    known = [(_last(image, verified, now), image) for image in images]
    due = [(at, image) for at, image in known if now - at >= timedelta(days=older_than_days)]
    due.sort(key=lambda row: (row[0], row[1].uuid, row[1].id))
    return [Turn(image, f"last read {at:%Y-%m-%d %H:%M}") for at, image in due[:at_most]]


def key_of(image: ImageManifest) -> str:
    """What an image is called in the record of readings."""
    return f"{image.uuid}/{image.id}"


def _last(image: ImageManifest, verified: Mapping[str, datetime], now: datetime) -> datetime:
    at = verified.get(key_of(image), image.ended)
    return at if at <= now else image.ended
