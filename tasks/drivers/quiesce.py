"""A guest whose file systems hold still for the instant of a snapshot or a backup, and go on whatever happens."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import libvirt

from tasks.drivers import guest_agent
from tasks.drivers.dead_man import armed
from tasks.drivers.guest_agent import Consistency
from tasks.drivers.host_shell import HostShell
from tasks.drivers.journal import Journal
from tasks.drivers.libvirt_host import HostDomain

INSTANT_DEADLINE_S = 60
"""How long what is done to the frozen guest may take."""


@dataclass
class Quiesced:
    """What a snapshot of this moment is worth, and why it is not better; `frozen_s` is known when the guest goes on."""

    consistency: Consistency
    reason: str
    frozen_s: float = 0.0


@contextmanager
def quiesced(
    shell: HostShell, journal: Journal, domain: HostDomain, *, has_channel: bool, deadline_s: int, wanted: bool = True
) -> Iterator[Quiesced]:
    """Freeze the guest within `deadline_s` while the block runs; a guest that cannot be frozen is no error.

    The journal has PREPARE: whoever reconciles it thaws the guest. The host thaws it by itself when nobody does.
    """
    running = domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    wanted = wanted and running
    after_s = deadline_s + INSTANT_DEADLINE_S
    with armed(shell, domain, "domfsthaw", after_s) if wanted and has_channel else nullcontext():
        began = time.monotonic()
        frozen = guest_agent.freeze(domain, journal, has_channel=has_channel, wanted=wanted, deadline_s=deadline_s)
        found = Quiesced(frozen.consistency, frozen.reason if running else "the VM is paused")
        try:
            yield found
        finally:
            if frozen.asked:
                guest_agent.thaw(domain, journal)
            found.frozen_s = time.monotonic() - began if frozen.frozen else 0.0
