"""Commands in a VM through its guest agent: nothing of the network is needed, and none of it is reached.

The agent runs them as root, one process each (guest-exec, see qemu-ga's QMP reference), and keeps at most 16 MiB of
what they write.
"""

import base64
import json
import os
import shlex
import time
from collections.abc import Sequence
from typing import Any

import libvirt_qemu

from tasks.drivers.libvirt_host import HostDomain
from tasks.drivers.ssh import GRACE_S, Output
from tasks.errors import CommandFailed, CommandTimedOut, GbsError, GuestAgentError, Unreachable

ANSWER_DEADLINE_S = 20
_MARGIN_S = 10
_POLL_S = (0.05, 0.1, 0.2, 0.5, 1.0)
_TIMED_OUT = (124, 137)


class AgentShell:
    """The guest of one VM, as `tasks.drivers.ssh.Shell` is a system."""

    def __init__(self, domain: HostDomain) -> None:
        self.name = domain.name
        self._domain = domain

    def run(
        self,
        command: Sequence[str] | str,
        *,
        deadline_s: float,
        check: bool = True,
        name: str | None = None,
    ) -> Output:
        """Run an argv, or a constant script text through sh(1), to its end; at its deadline it is ended in the guest.

        Raises CommandFailed (unless `check` is false), CommandTimedOut, Unreachable when the agent does not answer.
        """
        argv = ["sh", "-c", command] if isinstance(command, str) else [*command]
        text = command if isinstance(command, str) else " ".join(argv)
        called = f"{name or text.split(chr(10), 1)[0][:60]} in {self.name}"
        done = self._finished(self._begin(argv, deadline_s), called, deadline_s)
        output = Output(done.get("exitcode", 128 + done.get("signal", 0)), _text(done, "out"), _text(done, "err"))
        if output.status in _TIMED_OUT and done["took_s"] >= deadline_s:
            raise CommandTimedOut(called, deadline_s, output.stderr.strip()[-2000:])
        if check and output.status != 0:
            raise CommandFailed(called, output.status, (output.stderr or output.stdout).strip()[-2000:])
        return output

    def run_to_end(self, command: Sequence[str], *, deadline_s: float, name: str) -> Output:
        """As `run`: what is run in a guest never goes on after its deadline."""
        return self.run(command, deadline_s=deadline_s, name=name)

    def _begin(self, argv: Sequence[str], deadline_s: float) -> int:
        # By sh's input, since an argument of guest-exec must be UTF-8.
        script = os.fsencode(f"exec {shlex.join(argv)} </dev/null\n")
        ended = [f"--kill-after={GRACE_S}", f"{deadline_s:g}", "sh"]
        wanted = {
            "path": "timeout",
            "arg": ended,
            "input-data": base64.b64encode(script).decode(),
            "capture-output": True,
        }
        return int(self._ask("guest-exec", wanted)["pid"])

    def _finished(self, pid: int, called: str, deadline_s: float) -> dict[str, Any]:
        began, pauses = time.monotonic(), iter(_POLL_S)
        while True:
            answer = self._ask("guest-exec-status", {"pid": pid})
            took_s = time.monotonic() - began
            if answer["exited"]:
                return {**answer, "took_s": took_s}
            if took_s > deadline_s + 2 * GRACE_S:
                raise CommandTimedOut(called, deadline_s, "the guest agent does not say that it ended")
            time.sleep(next(pauses, _POLL_S[-1]))

    def _ask(self, asked: str, arguments: dict[str, Any]) -> dict[str, Any]:
        request = json.dumps({"execute": asked, "arguments": arguments})

        def ask(handle: Any) -> str:
            return str(libvirt_qemu.qemuAgentCommand(handle, request, ANSWER_DEADLINE_S, 0))

        try:
            answer = self._domain.call(asked, ask, deadline_s=ANSWER_DEADLINE_S + _MARGIN_S)
        except GbsError as exc:
            raise Unreachable(f"the guest agent of {self.name}", str(exc.args[-1])) from exc
        try:
            found: dict[str, Any] = json.loads(answer)["return"]
            return found
        except (ValueError, KeyError, TypeError) as exc:
            raise GuestAgentError(self.name, asked, f"unreadable answer {answer[:200]!r}") from exc


def _text(answer: dict[str, Any], stream: str) -> str:
    return base64.b64decode(answer.get(f"{stream}-data", "")).decode("utf-8", "surrogateescape")
