"""Which of a client's nights is meant by `latest`, `daily.3`, an id or a date."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from pathlib import Path

from tasks.errors import ConfigError, NothingToRecover
from tasks.model.manifest import NightManifest
from tasks.model.names import time_of_id
from tasks.model.retention import KEPT

LATEST = "latest"
OVERNIGHT = "overnight"


@dataclass(frozen=True)
class Night:
    """A client's files as of one night: `name` is `overnight`, or the restore point's (`daily.0`).

    `folder` is None of a point that its engine must bring first.
    """

    name: str
    folder: Path | None
    manifest: NightManifest


def choose(client: str, nights: Sequence[Night], wanted: str) -> Night:
    """The night that `wanted` names: `latest`, `overnight`, `daily.N`, an id, or a date (YYYY-MM-DD, its last night).

    Raises NothingToRecover with what there is when no night fits, ConfigError when `wanted` says nothing.
    """
    by_age = sorted(nights, key=lambda night: (night.manifest.id, night.name == OVERNIGHT), reverse=True)
    listed = ", ".join(f"{night.name} ({night.manifest.id})" for night in by_age[:30]) or "none"
    if wanted == LATEST:
        fitting = by_age
    else:
        fitting = [night for night in by_age if wanted in (night.name, night.manifest.id)]
        if not fitting:
            end = _end_of_day(wanted)
            if end is None and not _is_name(wanted):
                raise ConfigError(f"{wanted!r} is no night", "--from", f"give latest, YYYY-MM-DD, or one of: {listed}")
            fitting = [night for night in by_age if end is not None and night.manifest.ended <= end]
    if not fitting:
        raise NothingToRecover(f"client {client}", f"no night fits {wanted!r}; there are: {listed}")
    return fitting[0]


def _is_name(text: str) -> bool:
    interval, _, number = text.partition(".")
    if text == OVERNIGHT or (interval in ("daily", "weekly", "monthly") and number.isdecimal()):
        return True
    text = text.removeprefix(KEPT)
    try:
        time_of_id(text)
    except ValueError:
        return False
    return True


def _end_of_day(text: str) -> datetime | None:
    try:
        return datetime.combine(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date(), time.max, UTC)
    except ValueError:
        return None
