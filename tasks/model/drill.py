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
    """OK when the newest image booted and every probe held, WARNING when an older one had to be taken. MISSED when
    another run had the VM, or it was interrupted: it is its turn again the next night. A drill that could not run for
    any other reason is FAILED."""
    reasons: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    """What was done and how long each step took."""
    databases: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    screenshot: str = ""
    """The picture of its console, beside the manifest; empty when there is none."""
    unseen: str = ""
    """Why there is no picture."""

    @property
    def recovery_s(self) -> float:
        """Seconds from the first step to the last probe."""
        return sum(step.seconds for step in self.steps)

    @property
    def data_age(self) -> timedelta | None:
        """How old the files were when the drill began: what a disaster at that time would have cost."""
        return self.started - self.night_ended if self.night_ended else None


class UnfinishedDrill(BaseModel):
    """A drill that has not ended: it runs now, or it was interrupted and what it made is still on the KVM host."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vm: str
    name: str
    uuid: str
    kvm_host: str
    image: str
    night: str
    since: datetime
    runs: bool

    @property
    def line(self) -> str:
        """What an operator is told of it."""
        if self.runs:
            return f"a drill of VM {self.vm} runs on {self.kvm_host} as {self.name}"
        left = f"{self.name} is left on {self.kvm_host}"
        return f"the drill of VM {self.vm} was interrupted and {left}; gbs reconcile takes it away"


def due(last: Mapping[str, datetime | None], now: datetime, every_days: int) -> list[str]:
    """The VMs whose turn it is tonight: each comes within `every_days`, and they are spread over the nights.

    `last` is when each was drilled, well or not, None if never. Who waits longest comes first; whose drill failed is
    not drilled every night for it.
    """
    age = timedelta(days=every_days) - _HALF_A_DAY
    waiting = [vm for vm, when in last.items() if when is None or now - when >= age]
    waiting.sort(key=lambda vm: (last[vm] is not None, last[vm], vm))
    return waiting[: -(-len(last) // every_days)]
