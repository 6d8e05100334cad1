"""What proves that a recovered system works, asked of the system itself."""

from tasks.drivers.host_shell import HostShell
from tasks.errors import CommandFailed
from tasks.model.inventory_systems import Probe

DEADLINE_S = 60


def hold(shell: HostShell, called: str, probe: Probe) -> str:
    """The words of a probe that holds in the system that is `called` so; CommandFailed when it does not."""
    try:
        shell.run(probe.argv, deadline_s=DEADLINE_S)
    except CommandFailed as exc:
        raise CommandFailed(f"probe {probe.words!r} of {called}", *exc.args[1:]) from exc
    return probe.words
