"""What proves that a recovered system works, asked of the system itself."""

from tasks.drivers.host_shell import HostShell
from tasks.errors import CommandFailed
from tasks.model.inventory_systems import Probe

DEADLINE_S = 60
_TCP = 'exec 3<>"/dev/tcp/127.0.0.1/$1"'


def hold(shell: HostShell, called: str, probe: Probe) -> str:
    """The words of a probe that holds in the system that is `called` so; CommandFailed when it does not."""
    command = list(probe.command) or ["bash", "-c", _TCP, "gbs", str(probe.tcp)]
    try:
        shell.run(command, deadline_s=DEADLINE_S)
    except CommandFailed as exc:
        raise CommandFailed(f"probe {probe.words!r} of {called}", *exc.args[1:]) from exc
    return probe.words
