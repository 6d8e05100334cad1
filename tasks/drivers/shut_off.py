"""A running VM that is shut off for as long as its disks are copied, and started again whatever happens."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import libvirt

from tasks.drivers import host_files
from tasks.drivers.dead_man import armed
from tasks.drivers.host_shell import HostShell
from tasks.drivers.journal import Journal
from tasks.drivers.libvirt_host import HostDomain
from tasks.drivers.progress import reporting
from tasks.errors import GbsError, HypervisorError, WindowOpen
from tasks.model.domain_xml import parse_domain
from tasks.model.window import OpenWindow, Step, WindowPlan

POLL_S = 0.5
MAY_STILL_GO_S = 900
"""How long after it was asked a guest may still shut down, and then has to be started again."""
_WAYS = (("guest agent", libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT), ("ACPI", libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN))
_OFF = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED)
log = logging.getLogger(__name__)


@contextmanager
def shut_off(
    shell: HostShell,
    journal: Journal,
    domain: HostDomain,
    run_id: str,
    *,
    deadline_s: float,
    work_deadline_s: float,
    force: bool,
) -> Iterator[str]:
    """Shut the VM down, by its guest agent and then by ACPI, run the block, and start it; how it went down is given.

    With `force` a guest that is not off after `deadline_s` loses its power; without, HypervisorError is raised, and a
    guest that goes down later is started by `reconcile`. The host starts the VM by itself when we are not heard of for
    `work_deadline_s` after that. The VM's lock is held. WindowOpen when an earlier window is unfinished.
    """
    if (left := journal.open_window()) is not None:
        raise WindowOpen(domain.name, "an offline copy", f"run {left.plan.run} did not end")
    if not domain.call("ask what it is", lambda handle: bool(handle.isPersistent())):
        raise HypervisorError(domain.name, "a shutdown", "it has no stored definition (it is transient)")
    plan = WindowPlan(
        run=run_id,
        vm=domain.name,
        uuid=domain.uuid,
        boot_id=host_files.boot_id(shell),
        xml=domain.inactive_xml() or "",
        disks=(),
        restart=True,
    )
    journal.append(Step.PREPARE, plan=plan)
    # An error before the guest is off leaves the journal open: the guest may yet go down.
    with armed(shell, domain, "start", int(deadline_s + work_deadline_s)):
        with journal.step(Step.SHUTDOWN), reporting(log, f"shut down {domain.name}"):
            how = _shut_down(domain, deadline_s, force)
        try:
            yield how
        finally:
            start_again(journal, domain)
            journal.finish()


def _shut_down(domain: HostDomain, deadline_s: float, force: bool) -> str:
    ends_at = time.monotonic() + deadline_s
    agent = parse_domain(domain.xml()).guest_agent
    ways = _WAYS if agent else _WAYS[1:]
    for number, (way, flag) in enumerate(ways, start=1):
        # The first way gets half of the time, so that the second has some.
        until = ends_at if number == len(ways) else time.monotonic() + deadline_s / 2
        try:
            domain.call(f"shut down by {way}", _asking(flag))
        except GbsError as exc:
            log.warning("VM %s was not shut down by its %s: %s", domain.name, way, exc)
            continue
        while time.monotonic() < until:
            if _is_off(domain):
                return f"it was shut down by its {way}" if way != "ACPI" else "it was shut down by ACPI"
            time.sleep(POLL_S)
    if _is_off(domain):
        return "it was shut down"
    if not force:
        raise HypervisorError(domain.name, "a shutdown", f"the guest was not off after {deadline_s:.0f} s")
    domain.call("cut the power", lambda handle: handle.destroy())
    return ""


def _asking(flag: int) -> Callable[[Any], object]:
    return lambda handle: handle.shutdownFlags(flag)


def _is_off(domain: HostDomain) -> bool:
    return domain.state()[0] in _OFF


def start_again(journal: Journal, domain: HostDomain) -> None:
    """Start the VM unless it runs; HypervisorError, and an open journal, when libvirt does not."""
    with journal.step(Step.START):
        if _is_off(domain):
            domain.call("start", lambda handle: handle.create())


def settle_restart(journal: Journal, window: OpenWindow, domain: HostDomain | None) -> tuple[bool, str]:
    """Whether a VM that was to be shut off for a copy is what it was, and why; one that is off is started."""
    if domain is None:
        return True, "the VM is not defined any more"
    asked = next((record.at for record in window.records if record.step is Step.SHUTDOWN), None)
    if asked is None or window.reached(Step.START, "", "done"):
        return True, "the VM is as it was"
    try:
        if _is_off(domain):
            start_again(journal, domain)
            return True, "it was shut off for a copy and is started again"
    except HypervisorError as exc:
        return False, f"it was shut off for a copy and does not start: {exc.args[-1]}"
    age_s = (datetime.now(UTC) - asked).total_seconds()
    if age_s < MAY_STILL_GO_S and not window.reached(Step.SHUTDOWN, "", "done"):
        return False, f"it was asked to shut down {age_s:.0f} s ago and may still do so"
    return True, "it runs"
