"""What is read again tonight: what was longest unread first, so that each has its turn; and what is noted of it."""

from collections.abc import Mapping, Sequence
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
    tried: datetime | None = None
    """When a reading of all of it last began, whatever it found."""
    hurt: datetime | None = None
    """When a reading last found damage in it that was not known, healed or not."""
    damaged: tuple[str, ...] = ()
    """The files that the last reading left damaged."""
    known: Mapping[str, str] = {}
    """What of these is damaged, as far as that was told."""


@dataclass(frozen=True)
class Turn:
    """What is read, by the name that it was given, and why."""

    name: str
    reason: str


def choose_turns(
    made: Mapping[str, datetime],
    verified: Mapping[str, Verified],
    now: datetime,
    *,
    older_than_days: int = 0,
    at_most: int | None = None,
) -> list[Turn]:
    """Those whose last full reading (or making, if none) is older than that, the longest unread first.

    One that could not be read, or stays damaged, is behind those that were not tried since. A time that lies in the
    future counts as none.
    """
    due = []
    for name, there in made.items():
        record = verified.get(name)
        read = _past(record.at if record else None, there, now)
        tried = _past(record.tried if record else None, read, now)
        if now - read >= timedelta(days=older_than_days):
            again = f", tried {tried:%Y-%m-%d %H:%M}" if tried > read else ""
            due.append((max(read, tried), Turn(name, f"last read {read:%Y-%m-%d %H:%M}{again}")))
    return [turn for _, turn in sorted(due, key=lambda one: (one[0], one[1].name))[:at_most]]


def noted(before: Verified, found: Mapping[str, str], left: Sequence[str], now: datetime, *, whole: bool) -> Verified:
    """The record after a reading of all of it, or of a sample, which does not make it whole again.

    `found` are the files that were damaged and what of each, `left` those that stay so. Damage that was known before
    puts nothing anew in doubt.
    """
    is_new = any(before.known.get(path) != what for path, what in found.items())
    stays = {path: found[path] for path in left}
    return before.model_copy(
        update={
            "at": now if whole and not left else before.at,
            "hurt": now if is_new else before.hurt,
            "damaged": tuple(left) if whole else tuple(dict.fromkeys((*before.damaged, *left))),
            "known": stays if whole else {**before.known, **stays},
        }
    )


def key_of(image: ImageManifest) -> str:
    """What an image is called in the record of readings."""
    return f"{image.uuid}/{image.id}"


def _past(time: datetime | None, otherwise: datetime, now: datetime) -> datetime:
    return time if time is not None and time <= now else otherwise
