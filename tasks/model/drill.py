"""Drills: a VM is recovered where nobody is disturbed, proves itself, and is torn down. What came of it, whose turn."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from tasks.model.outcome import Outcome
from tasks.model.recovery import Step

PREFIX = "gbs-drill-"
"""Before the VM's name: what a drill is called on the KVM host."""
PICTURE = "console.png"
"""What the console's picture is called, beside a drill's manifest."""
_HALF_A_DAY = timedelta(hours=12)
"""A night begins at about the same hour, and a drill at any in it."""


class Drilled(BaseModel):
    """The manifest of a drill."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    vm: str
    client: str
    kvm_host: str
    image: str = ""
    night: str = ""
    night_ended: datetime | None = None
    started: datetime
    ended: datetime
    outcome: Outcome
    """OK when it booted and every probe held; a drill that could not run is FAILED, never skipped."""
    reasons: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    """What was done and how long each step took."""
    databases: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    screenshot: str = ""
    """The picture of its console, beside the manifest; empty when it has none."""

    @property
    def recovery_s(self) -> float:
        """Seconds from the first step to the last probe."""
        return sum(step.seconds for step in self.steps)

    @property
    def data_age(self) -> timedelta | None:
        """How old the files were when the drill began: what a disaster at that time would have cost."""
        return self.started - self.night_ended if self.night_ended else None


def due(last: Mapping[str, datetime | None], now: datetime, every_days: int) -> list[str]:
    """The VMs whose turn it is tonight: each comes within `every_days`, and they are spread over the nights.

    `last` is when each was drilled, well or not, None if never. Who waits longest comes first; whose drill failed is
    not drilled every night for it.
    """
    age = timedelta(days=every_days) - _HALF_A_DAY
    waiting = [vm for vm, when in last.items() if when is None or now - when >= age]
    waiting.sort(key=lambda vm: (last[vm] is not None, last[vm], vm))
    return waiting[: -(-len(last) // every_days)]
