"""Commands on a KVM host, wherever it is: over ssh, or on this machine."""

import os
import shlex
from collections.abc import Sequence
from typing import Protocol

from tasks.drivers import process
from tasks.drivers.ssh import Output
from tasks.errors import CommandFailed, Unreachable


class HostShell(Protocol):
    """What `tasks.drivers.ssh.Shell` offers, and `LocalShell` too."""

    def run(
        self, command: Sequence[str] | str, *, deadline_s: float, check: bool = True, name: str | None = None
    ) -> Output:
        """Run an argv, or a constant script text, to its end; errors as `tasks.drivers.ssh.Shell.run`."""
        ...


class SystemShell(HostShell, Protocol):
    """What a system is spoken to by: `tasks.drivers.ssh.Shell`, or the guest agent of a VM."""

    @property
    def name(self) -> str:
        """What operators call the system."""
        ...

    def run_to_end(self, command: Sequence[str], *, deadline_s: float, name: str) -> Output:
        """Run an argv that is ended there, with all that it started, at its deadline; errors as of `run`."""
        ...


class LocalShell:
    """The shell of this very machine, for a KVM host that GBS runs on."""

    def run(
        self, command: Sequence[str] | str, *, deadline_s: float, check: bool = True, name: str | None = None
    ) -> Output:
        """Run an argv, or a constant script text through sh(1); errors as `tasks.drivers.ssh.Shell.run`."""
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        called = name or (command if isinstance(command, str) else shlex.join(command))[:60]
        done = process.run(argv, deadline_s=deadline_s, accept=lambda status: True, name=called)
        if check and done.status != 0:
            raise CommandFailed(called, done.status, (done.stderr or done.text).strip()[-2000:])
        return Output(done.status, done.text, done.stderr)


def run_each(shell: HostShell, commands: Sequence[Sequence[str]], *, deadline_s: float) -> list[Output]:
    """Run several short commands in one round trip, in the C locale; what each left, whatever its status.

    A round trip costs a login shell and its start-up files (0.05 to 1 s), which counts while a window is open.
    """
    if not commands:
        return []
    mark = os.urandom(12).hex()
    lines = ["export LC_ALL=C", "exec 3>&1"]
    for argv in commands:
        lines.append(f"err=$({shlex.join(argv)} 2>&1 1>&3 3>&- </dev/null)")
        lines.append(f"printf '%s%s\\n%s%s' {mark} $? \"$err\" {mark}")
    done = shell.run(["sh", "-c", "\n".join(lines)], deadline_s=deadline_s, name=shlex.join(commands[0])[:60])
    parts = done.stdout.split(mark)
    if len(parts) != 2 * len(commands) + 1:
        raise Unreachable("the host's shell", f"{len(parts) // 2} of {len(commands)} answers came back")
    outputs = []
    for stdout, result in zip(parts[0:-1:2], parts[1::2], strict=True):
        status, _, stderr = result.partition("\n")
        outputs.append(Output(int(status), stdout, stderr))
    return outputs
