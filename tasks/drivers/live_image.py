"""SnapLive whole: snapshot a running VM, copy its disks while it writes to overlays, commit, pivot."""

import logging
import time
from datetime import UTC, datetime
from pathlib import Path

from tasks.drivers import disk_copy
from tasks.drivers.host_files import folder_of
from tasks.drivers.host_shell import HostShell
from tasks.drivers.journal import Journal, read_records
from tasks.drivers.libvirt_host import Host
from tasks.drivers.progress import reporting
from tasks.drivers.snaplive import open_window
from tasks.drivers.snaplive_settle import close_window
from tasks.drivers.space_watch import SpaceWatch
from tasks.model.image_method import Wishes
from tasks.model.image_taken import Taken
from tasks.model.ssh_target import SshTarget
from tasks.model.window import Step

log = logging.getLogger(__name__)


def take(
    host: Host,
    shell: HostShell,
    target: SshTarget,
    journal: Journal,
    uuid: str,
    image_id: str,
    folder: Path,
    wishes: Wishes,
    reason: str = "",
) -> Taken:
    """Copy the disks of a running VM, as of one instant, into `folder`; the window closes whatever happens.

    The VM's lock is held. Raises what `open_window`, `disk_copy.copy` and `close_window` raise.
    """
    started, tools = datetime.now(UTC), host.versions()
    window = open_window(
        host,
        shell,
        journal,
        uuid,
        image_id,
        freeze_deadline_s=wishes.freeze_deadline_s,
        min_free_bytes=wishes.min_free_bytes,
        image_folder=wishes.image_folder,
    )
    vm = window.plan.vm
    log.info("%s: snapshot of %d disk(s), %s-consistent", vm, len(window.disks), window.consistency)
    began = time.monotonic()
    try:
        watch = SpaceWatch(
            host,
            shell,
            vm,
            uuid,
            [folder_of(disk.overlay) for disk in window.disks],
            ends_at=began + wishes.max_window_s,
        )
        moved = disk_copy.copy(shell, target, vm, window.disks, folder, wishes, watch)
    finally:
        copy_s = time.monotonic() - began
        with reporting(log, f"commit {vm}") as progress:
            close_window(host, shell, journal, on_progress=lambda _target, *done: progress.update(*done))
    pivoted = [entry.at for entry in read_records(journal.done_path) if entry.step is Step.PIVOTED]
    return Taken(
        id=image_id,
        started=started,
        instant=window.instant,
        method="snaplive",
        method_reason=reason,
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
