"""What is done to the disks of a window without block jobs: offline commit, redefinition, removal of overlays."""

from collections.abc import Sequence
from datetime import UTC, datetime

from tasks.drivers import host_files, qemu_img
from tasks.drivers.host_shell import HostShell
from tasks.drivers.journal import Journal
from tasks.drivers.libvirt_host import Host, HostDomain
from tasks.errors import HypervisorError
from tasks.model.domain_xml import parse_domain, set_disk_source
from tasks.model.names import new_id
from tasks.model.window import PlannedDisk, Step


def commit_offline(shell: HostShell, journal: Journal, disks: Sequence[PlannedDisk], deadline_s: float) -> None:
    """Commit the overlays of a VM that is shut off; QEMU's image locks keep the VM from starting meanwhile."""
    for disk in disks:
        with journal.step(Step.COMMIT, disk.target, note="offline"):
            qemu_img.check(shell, disk.overlay, "qcow2", deadline_s=deadline_s)
            qemu_img.commit(shell, disk.overlay, disk.layers, deadline_s=deadline_s)


def redefine(host: Host, journal: Journal, domain: HostDomain, disks: Sequence[PlannedDisk]) -> None:
    """Put the stored definition of a VM on the bases of these disks, and nothing else of it.

    Raises HypervisorError when libvirt does not show them afterwards.
    """
    text = domain.inactive_xml(secrets=True)
    if text is None:
        raise HypervisorError(domain.name, "redefine", "the VM has no stored definition any more")
    for disk in disks:
        journal.append(Step.REDEFINE, "intent", disk.target)
        text = set_disk_source(text, disk.target, *disk.named, disk.format)
    host.define(text, domain.name)
    shown = parse_domain(domain.inactive_xml() or "")
    for disk in disks:
        found = shown.disk(disk.target)
        if found is None or found.source != disk.named[1]:
            raise HypervisorError(domain.name, f"redefinition of disk {disk.target}", "libvirt does not show the base")
        journal.append(Step.REDEFINE, target=disk.target)


def remove_overlays(shell: HostShell, journal: Journal, disks: Sequence[PlannedDisk], *, keep: bool) -> None:
    """Remove overlays that are proven to be ours and obsolete; with `keep`, move them aside instead."""
    if not keep:
        for disk in disks:
            journal.append(Step.UNLINK, "intent", disk.target)
        host_files.remove(shell, [disk.overlay for disk in disks])
        for disk in disks:
            journal.append(Step.UNLINK, target=disk.target)
        return
    for disk in disks:
        aside = f"{disk.overlay}.trash-{new_id(datetime.now(UTC))}"
        with journal.step(Step.TRASH, disk.target, note=aside):
            host_files.rename(shell, disk.overlay, aside)
