"""SnapLive whole: snapshot a running VM, copy its disks while it writes to overlays, commit, pivot."""

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from tasks.drivers import disk_copy, disk_sources
from tasks.drivers.host_files import folder_of
from tasks.drivers.host_shell import HostShell
from tasks.drivers.image_order import Order
from tasks.drivers.journal import read_records
from tasks.drivers.libvirt_host import HostDomain
from tasks.drivers.progress import reporting
from tasks.drivers.snaplive import Window, open_window
from tasks.drivers.snaplive_settle import close_window
from tasks.drivers.space_watch import SpaceWatch
from tasks.errors import HypervisorError
from tasks.model.domain_xml import parse_domain
from tasks.model.image_method import Wishes
from tasks.model.image_taken import Taken
from tasks.model.names import human_bytes
from tasks.model.window import Step, select_disks
from tasks.model.window_budget import Budget, expect

SAMPLE_S = 1.0
"""How long the guest is watched to learn how much it writes."""
log = logging.getLogger(__name__)


def take(order: Order) -> Taken:
    """Copy the disks of a running VM as of one instant; the window closes whatever happens.

    HypervisorError when the copy would take too long; else what `open_window`,
    `disk_copy.copy` and `close_window` raise.
    """
    started, tools = datetime.now(UTC), order.host.versions()
    window = _open(order)
    vm = window.plan.vm
    log.info("%s: snapshot of %d disk(s), %s-consistent", vm, len(window.disks), window.consistency)
    began = time.monotonic()
    try:
        folders, ends_at = [folder_of(disk.overlay) for disk in window.disks], began + order.wishes.max_window_s
        watch = SpaceWatch(order.host, order.shell, vm, order.uuid, folders, ends_at=ends_at)
        moved = disk_copy.copy(order.shell, order.target, vm, window.disks, order.folder, order.wishes, watch)
    finally:
        copy_s = time.monotonic() - began
        with reporting(log, f"commit {vm}") as progress:
            close_window(
                order.host, order.shell, order.journal, on_progress=lambda _target, *done: progress.update(*done)
            )
    pivoted = [entry.at for entry in read_records(order.journal.done_path) if entry.step is Step.PIVOTED]
    return Taken(
        id=order.image_id,
        started=started,
        instant=window.instant,
        method="snaplive",
        method_reason=order.reason,
        consistency=window.consistency,
        consistency_reason=window.consistency_reason or "the guest's file systems were frozen for the snapshot",
        window_s=(max(pivoted) - window.instant).total_seconds(),
        copy_s=copy_s,
        frozen_s=window.frozen_s,
        disks=tuple(map(disk_copy.taken, window.disks)),
        tools=tools,
        warnings=window.warnings,
        bytes_moved=moved,
    )


def _open(order: Order) -> Window:
    """A window that the policy allows, with the room that it is expected to need."""
    wishes = order.wishes
    budget = _budget(order.shell, order.host.domain(order.uuid), wishes)
    return open_window(
        order.host,
        order.shell,
        order.journal,
        order.uuid,
        order.image_id,
        freeze_deadline_s=wishes.freeze_deadline_s,
        min_free_bytes=max(wishes.min_free_bytes, budget.overlay_bytes),
        image_folder=wishes.image_folder,
    )


def _budget(shell: HostShell, domain: HostDomain, wishes: Wishes) -> Budget:
    """What the window will cost, from how much there is to copy and how much the guest writes just now."""
    disks = select_disks(parse_domain(domain.xml())).taken
    sources = disk_sources.find(shell, domain, disks, shared=True)
    targets = [disk.target for disk in disks]
    before = _written(domain, targets)
    time.sleep(SAMPLE_S)
    rate = max(0, _written(domain, targets) - before) / SAMPLE_S
    speeds = [speed for speed in (wishes.expected_bytes_per_s, wishes.bytes_per_s) if speed]
    allocated = sum(source.allocated_bytes for source in sources)
    largest = max(source.virtual_size_bytes for source in sources)
    budget = expect(allocated, min(speeds, default=None), rate, largest)
    if budget.copy_s > wishes.max_window_s:
        hours, allowed = (f"{seconds / 3600:.1f} h" for seconds in (budget.copy_s, wishes.max_window_s))
        reason = (
            f"it would take about {hours}, max_window_s of its policy allows {allowed}: raise it, or use backup-api"
        )
        raise HypervisorError(domain.name, "a live copy", reason)
    log.info("%s: %s to copy, about %.0f s", domain.name, human_bytes(allocated), budget.copy_s)
    return budget


def _written(domain: HostDomain, targets: Sequence[str]) -> int:
    """The bytes that the guest has written to these disks since it runs."""
    return domain.call(
        "ask what was written", lambda handle: sum(int(handle.blockStats(target)[3]) for target in targets)
    )
