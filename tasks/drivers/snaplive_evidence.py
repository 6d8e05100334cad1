"""What is known about the disks of an unfinished window, asked anew from libvirt and the host's files."""

from dataclasses import dataclass, field

import libvirt

from tasks.drivers import host_files, qemu_img
from tasks.drivers.host_shell import HostShell, run_each
from tasks.drivers.libvirt_host import Host, HostDomain
from tasks.drivers.ssh import Output
from tasks.errors import CommandFailed, IntegrityError
from tasks.model.domain_xml import Disk, Domain, names_path, parse_domain
from tasks.model.window import OpenWindow, PlannedDisk, Step
from tasks.model.window_decision import Evidence, Job, Power, Source

FILES_DEADLINE_S = 60
_POWER = {
    libvirt.VIR_DOMAIN_SHUTOFF: Power.OFF,
    libvirt.VIR_DOMAIN_CRASHED: Power.OFF,
    libvirt.VIR_DOMAIN_SHUTDOWN: Power.CHANGING,
}


@dataclass(frozen=True)
class VmView:
    """One look at a VM: its power and its definitions, live (None unless it runs) and inactive (None if transient)."""

    domain: HostDomain | None
    power: Power
    live: Domain | None = None
    inactive: Domain | None = None
    managed_save: bool = False
    others: tuple[str, ...] = field(default=(), repr=False)
    """All definitions of the host's other VMs."""


def look(host: Host, uuid: str, *, others: bool = True) -> VmView:
    """Look at the VM with that UUID, and at the others of its host."""
    domain = host.find_uuid(uuid)
    if domain is None:
        return VmView(None, Power.ABSENT)
    state, _ = domain.state()
    power = _POWER.get(state, Power.ON)
    live_text, inactive_text = domain.xml(), domain.inactive_xml()
    return VmView(
        domain,
        power,
        live=parse_domain(live_text) if power is not Power.OFF else None,
        inactive=parse_domain(inactive_text) if inactive_text is not None else None,
        managed_save=domain.call("ask for a saved image", lambda handle: bool(handle.hasManagedSaveImage(0))),
        others=tuple(_definitions_of_others(host, uuid)) if others else (),
    )


def _definitions_of_others(host: Host, uuid: str) -> list[str]:
    """The live and inactive definitions of all VMs but one; a VM that goes away meanwhile names nothing."""

    def read() -> list[str]:
        texts = []
        for handle in host.connection.listAllDomains(0):
            if handle.UUIDString() == uuid:
                continue
            try:
                texts += [handle.XMLDesc(0), handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)]
            except libvirt.libvirtError as exc:
                if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
        return texts

    return host.call("read the definitions of all VMs", "", read)


def source_of(domain: Domain | None, planned: PlannedDisk) -> Source | None:
    """What a definition names for a planned disk; path and format must both be the journal's."""
    if domain is None:
        return None
    disk = domain.disk(planned.target)
    if disk is None:
        return Source.NO_DISK
    if (disk.type, disk.source) == planned.named and disk.format == planned.format:
        return Source.BASE
    # Below the base may lie more, of which a definition shows all, some or nothing.
    below = disk.backing[:1] in ((), (planned.named[1],))
    if disk.type == "file" and disk.source == planned.overlay and disk.format == "qcow2" and below:
        return Source.OVERLAY
    return Source.OTHER


def job_of(view: VmView, planned: PlannedDisk) -> Job:
    """The block job on a planned disk; only an active commit of our overlay into its base is ours."""
    disk = view.live.disk(planned.target) if view.live else None
    if view.domain is None or disk is None:
        return Job.NONE
    if disk.mirror is None:
        busy = view.domain.call("ask for block jobs", lambda handle: bool(handle.blockJobInfo(planned.target, 0)))
        # A commit of ours that ended between the two questions is no longer a job; the next look tells.
        return Job.FOREIGN if busy else Job.NONE
    ours = disk.mirror.job == "active-commit" and disk.source == planned.overlay
    if not ours or disk.mirror.destination not in (None, planned.named[1]):
        return Job.FOREIGN
    return Job.READY if disk.mirror.ready else Job.ACTIVE


@dataclass(frozen=True)
class DiskFiles:
    """What the host's files say about one disk."""

    overlay_exists: bool
    overlay_proven: bool
    """It is the file that was noted, over the base that was noted; nobody whom libvirt does not show holds it open."""


def files_of(shell: HostShell, window: OpenWindow, view: VmView) -> dict[str, DiskFiles]:
    """What the host's files say about the disks of a window, in one round trip."""
    commands: list[list[str]] = []
    for disk in window.plan.disks:
        in_use = view.power is not Power.OFF and source_of(view.live, disk) is Source.OVERLAY
        header = qemu_img.info_argv(disk.overlay, "qcow2", shared=in_use)
        commands += [host_files.stat_argv(disk.overlay), host_files.stat_argv(disk.base), header]
    answers = run_each(shell, commands, deadline_s=FILES_DEADLINE_S)
    found = {}
    for index, disk in enumerate(window.plan.disks):
        overlay_said, base_said, header_said = answers[3 * index : 3 * index + 3]
        overlay = host_files.parse_stat(overlay_said, disk.overlay)
        base = host_files.parse_stat(base_said, disk.base)
        same = overlay is not None and base is not None and disk.inode in (0, base.inode)
        noted = _noted_inode(window, disk)
        same = same and (noted is None or overlay is None or noted == overlay.inode)
        found[disk.target] = DiskFiles(overlay is not None, same and _header_is_ours(header_said, disk))
    return found


def _noted_inode(window: OpenWindow, disk: PlannedDisk) -> int | None:
    noted = [r.note for r in window.records if r.step is Step.SNAPSHOT and r.target == disk.target and r.note]
    return int(noted[-1]) if noted else None


def _header_is_ours(said: Output, disk: PlannedDisk) -> bool:
    try:
        header = qemu_img.parse_info(said, disk.overlay, "qcow2")
    except (CommandFailed, IntegrityError):
        # No qcow2, or open for writing.
        return False
    return header.backing == disk.base and header.backing_format == disk.format


def evidence(window: OpenWindow, view: VmView, disk: PlannedDisk, files: DiskFiles) -> Evidence:
    """All that is known about one disk of the window."""
    if view.domain is None:
        return Evidence(Power.ABSENT, None, None, overlay_exists=files.overlay_exists)
    return Evidence(
        power=view.power,
        live=source_of(view.live, disk),
        inactive=source_of(view.inactive, disk),
        overlay_exists=files.overlay_exists,
        overlay_proven=files.overlay_proven,
        job=job_of(view, disk),
        pivot_intended=window.reached(Step.PIVOT, disk.target),
        settled=any(window.reached(step, disk.target, "done") for step in (Step.PIVOTED, Step.REDEFINE)),
        named_elsewhere=_named_elsewhere(view, disk),
        managed_save=view.managed_save,
        same_uuid=view.domain.uuid == window.plan.uuid,
    )


def _named_elsewhere(view: VmView, planned: PlannedDisk) -> bool:
    if any(names_path(text, planned.overlay) for text in view.others):
        return True
    own = [disk for domain in (view.live, view.inactive) if domain for disk in domain.disks]
    return any(disk.target != planned.target and planned.overlay in _paths(disk) for disk in own)


def _paths(disk: Disk) -> tuple[str | None, ...]:
    return (disk.source, *disk.backing, disk.mirror.destination if disk.mirror else None)
