"""What a recovery would use and how long it would take, what is missing, and why it would not be done."""

from collections.abc import Iterable
from statistics import median
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from tasks.errors import RecoveryRefused
from tasks.model.recovery import Recovered
from tasks.model.recovery_plan import Plan

UPDATE, SEND, DEFINE, BOOT = "update image with files", "send disks", "define and start", "wait for the guest"
RESTORE, PROBE = "restore databases", "probe"
STEPS = (UPDATE, SEND, DEFINE, BOOT, RESTORE, PROBE)
"""What takes its time in a recovery, in order."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(_Frozen):
    """Something that an operator should know before: it refuses the recovery, is missing in it, or is only said."""

    verdict: Literal["refused", "missing", "note"]
    subject: str
    reason: str
    fix: str = ""

    @property
    def words(self) -> str:
        """One line of it."""
        return f"{self.subject}: {self.reason}" + (f"; {self.fix}" if self.fix else "")


class Expected(_Frozen):
    """How long a step is expected to take, and by what; None where nothing like it was measured."""

    step: str
    seconds: float | None
    by: str


class Assessment(_Frozen):
    """All that is known of a recovery before it is done."""

    vm: str
    plan: Plan
    assessed: AwareDatetime
    image: str
    image_instant: AwareDatetime
    night: str
    night_name: str
    night_ended: AwareDatetime
    definition: str
    """The KVM host whose backup data it is from."""
    definition_ended: AwareDatetime | None
    databases: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    findings: tuple[Finding, ...]
    expected: tuple[Expected, ...]

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """What must be put right first."""
        return tuple(finding for finding in self.findings if finding.verdict == "refused")

    def require_possible(self) -> None:
        """RecoveryRefused, with all that must be put right, unless there is nothing of that."""
        require_possible(self.vm, self.refusals)

    @property
    def known_s(self) -> float:
        """How long the steps take together of which that is known."""
        return sum(step.seconds or 0 for step in self.expected)

    @property
    def unknown(self) -> tuple[str, ...]:
        """The steps of which it is not known."""
        return tuple(step.step for step in self.expected if step.seconds is None)


def require_possible(vm: str, findings: Iterable[Finding]) -> None:
    """RecoveryRefused, with all that must be put right, unless no finding refuses the recovery."""
    refusals = [finding for finding in findings if finding.verdict == "refused"]
    if refusals:
        first, *others = refusals
        reason = "; ".join([first.reason, *(finding.words for finding in others)])
        raise RecoveryRefused(f"VM {vm}", reason, first.fix)


class Work(_Frozen):
    """What a recovery has to do: bytes to read for the update, bytes to send; `copied_bytes_s` of its image's copy."""

    vm: str
    kvm_host: str
    read_bytes: int
    send_bytes: int
    databases: bool
    probes: bool
    copied_bytes_s: float | None = None


def expect(work: Work, past: list[Recovered]) -> tuple[Expected, ...]:
    """How long each step will take by past recoveries: of this VM to this host, else to this host, else by any.

    Steps that move bytes are expected by their bytes a second, the others by the median of what they took.
    """
    needed = {RESTORE: work.databases, PROBE: work.probes}
    return tuple(_expected(step, work, past) for step in STEPS if needed.get(step, True))


def _expected(step: str, work: Work, past: list[Recovered]) -> Expected:
    size = {UPDATE: work.read_bytes, SEND: work.send_bytes}.get(step)
    # Only where the bytes go counts for a transfer, only the guest itself for its boot.
    alike = {
        f"{work.vm} to {work.kvm_host}": [one for one in past if (one.vm, one.kvm_host) == (work.vm, work.kvm_host)],
        f"other VMs to {work.kvm_host}": [one for one in past if one.kvm_host == work.kvm_host],
        "other VMs": past,
    }
    for whose, recoveries in alike.items():
        taken = [each for one in recoveries for each in one.steps if each.name == step and each.seconds > 0]
        rates = [each.bytes_moved / each.seconds for each in taken if each.bytes_moved]
        seconds = [each.seconds for each in taken]
        if size is not None and rates:
            rate = median(rates)
            by = f"{len(rates)} recoveries of {whose}, {rate / 2**20:.1f} MiB/s"
            return Expected(step=step, seconds=size / rate, by=by)
        if size is None and seconds:
            return Expected(step=step, seconds=median(seconds), by=f"{len(seconds)} recoveries of {whose}")
    if step == SEND and work.copied_bytes_s:
        by = f"its image was copied at {work.copied_bytes_s / 2**20:.1f} MiB/s"
        return Expected(step=step, seconds=work.send_bytes / work.copied_bytes_s, by=by)
    return Expected(step=step, seconds=None, by="unknown: no recovery was measured yet")
