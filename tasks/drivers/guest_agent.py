"""The guest agent of a VM: freeze and thaw of its file systems, each with a hard deadline, each verified."""

import json
import time
from dataclasses import dataclass
from typing import Any, Literal

import libvirt_qemu

from tasks.drivers.journal import Journal
from tasks.drivers.libvirt_host import HostDomain
from tasks.errors import GbsError, GuestAgentError, HypervisorError
from tasks.model.window import Step

Consistency = Literal["file-system", "crash"]
PING_DEADLINE_S = 5
THAW_DEADLINE_S = 20
THAW_TRIES = 3
_STATUS = json.dumps({"execute": "guest-fsfreeze-status"})
_MARGIN_S = 10  # libvirt's own deadline comes first; ours only ends a call that hangs in the transport


@dataclass(frozen=True)
class Freeze:
    """What came of the wish to freeze: file systems frozen, or the reason why not."""

    frozen: int
    reason: str
    asked: bool
    """The agent may have got the request, so that a thaw is due."""

    @property
    def consistency(self) -> Consistency:
        """What a snapshot of this moment is."""
        return "file-system" if self.frozen else "crash"


def freeze(domain: HostDomain, journal: Journal, *, has_channel: bool, wanted: bool, deadline_s: int) -> Freeze:
    """Freeze all file systems of the guest within `deadline_s`; no agent is no error: the reason says why not."""
    if not wanted:
        return Freeze(0, "quiescing is switched off", asked=False)
    if not has_channel:
        return Freeze(0, "the VM has no guest agent channel", asked=False)
    try:
        # libvirt 9 does not tell an agent that never answered from one that got stuck in the freeze: ask before.
        if (before := status(domain, min(deadline_s, PING_DEADLINE_S))) != "thawed":
            return Freeze(0, f"the guest is {before!r} already, and not by us", asked=False)
    except HypervisorError as exc:
        return Freeze(0, f"the guest agent does not answer: {exc.args[-1]}", asked=False)
    journal.append(Step.FREEZE, "intent")
    try:
        domain.call("set the agent's deadline", lambda handle: handle.agentSetResponseTimeout(deadline_s, 0))
        count = domain.call("freeze", lambda handle: int(handle.fsFreeze()), deadline_s=deadline_s + _MARGIN_S)
    except HypervisorError as exc:
        journal.append(Step.FREEZE, "failed", note=str(exc))
        return Freeze(0, f"the guest did not freeze: {exc.args[-1]}", asked=True)
    journal.append(Step.FREEZE, note=f"{count} file systems")
    return Freeze(count, "" if count else "the guest agent froze no file system", asked=True)


def thaw(domain: HostDomain, journal: Journal, *, deadline_s: int = THAW_DEADLINE_S) -> None:
    """Thaw the guest and make sure that it is; harmless when it was not frozen.

    Raises GuestAgentError, or what the host's connection raises, when the guest is not known to be thawed.
    """
    journal.append(Step.THAW, "intent")
    last: GbsError = GuestAgentError(domain.name, "thaw", "it was not tried")
    for attempt in range(THAW_TRIES):
        try:
            domain.call("set the agent's deadline", lambda handle: handle.agentSetResponseTimeout(deadline_s, 0))
            domain.call("thaw", lambda handle: handle.fsThaw(), deadline_s=deadline_s + _MARGIN_S)
            if (state := status(domain, deadline_s)) == "thawed":
                journal.append(Step.THAW)
                return
            last = GuestAgentError(domain.name, "thaw", f"the guest says it is {state!r} after a thaw")
        except GbsError as exc:
            last = exc
        time.sleep(0.5 * attempt)
    journal.append(Step.THAW, "failed", note=str(last))
    raise last


def ping(domain: HostDomain, deadline_s: int = PING_DEADLINE_S) -> None:
    """Return when the guest agent answers; GuestAgentError when it does not."""

    def ask(handle: Any) -> str:
        return str(libvirt_qemu.qemuAgentCommand(handle, '{"execute": "guest-ping"}', deadline_s, 0))

    domain.call("ping the guest agent", ask, deadline_s=deadline_s + _MARGIN_S)


def status(domain: HostDomain, deadline_s: int) -> str:
    """`frozen` or `thawed`, as the guest agent says."""

    def ask(handle: Any) -> str:
        return str(libvirt_qemu.qemuAgentCommand(handle, _STATUS, deadline_s, 0))

    answer = domain.call("ask for the freeze state", ask, deadline_s=deadline_s + _MARGIN_S)
    try:
        return str(json.loads(answer)["return"])
    except (ValueError, KeyError, TypeError) as exc:
        raise GuestAgentError(domain.name, "ask for the freeze state", f"unreadable answer {answer[:200]!r}") from exc
