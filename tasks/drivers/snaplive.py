"""SnapLive: the opening of a snapshot window, in which a running VM writes to overlays while its disks lie still.

The caller holds the VM's lock, copies the disks' base images while the window is open, and closes it with
`tasks.drivers.snaplive_settle.close_window` whatever happens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import libvirt

from tasks.drivers import backup_job, disk_sources, host_files
from tasks.drivers.disk_sources import DiskSource
from tasks.drivers.guest_agent import Consistency
from tasks.drivers.host_files import IMAGE_FOLDER, FreeSpace, folder_of
from tasks.drivers.host_shell import HostShell, run_each
from tasks.drivers.journal import Journal
from tasks.drivers.libvirt_host import Host, HostDomain
from tasks.drivers.quiesce import INSTANT_DEADLINE_S, quiesced
from tasks.drivers.snaplive_settle import abandon_opening
from tasks.drivers.ssh import Output
from tasks.errors import DomainBusy, HypervisorError, UnsupportedDisk, WindowOpen
from tasks.model.domain_xml import Disk, parse_domain
from tasks.model.snapshot_xml import render_snapshot
from tasks.model.window import PlannedDisk, Selection, Step, WindowPlan, overlay_path, select_disks

MIN_FREE_BYTES = 1 << 30
SURVEY_DEADLINE_S = 60
FREEZE_DEADLINE_S = 20
_FLAGS = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
)


@dataclass(frozen=True)
class Window:
    """An open window: the bases of its disks do not change until it is closed."""

    plan: WindowPlan
    instant: datetime
    """When the disks were as their bases are."""
    consistency: Consistency
    consistency_reason: str
    """Why it is not better than crash-consistent; empty when it is."""
    frozen_s: float
    left_out: tuple[tuple[str, str], ...]
    """Disks that are not in the window: (target, reason)."""
    warnings: tuple[str, ...]

    @property
    def disks(self) -> tuple[PlannedDisk, ...]:
        """The disks to copy: `base` is the file to read, in `format`, of `virtual_size_bytes`."""
        return self.plan.disks


def open_window(
    host: Host,
    shell: HostShell,
    journal: Journal,
    vm: str,
    run_id: str,
    *,
    freeze_deadline_s: int = FREEZE_DEADLINE_S,
    quiesce: Literal["auto", "never"] = "auto",
    min_free_bytes: int = MIN_FREE_BYTES,
    image_folder: str = IMAGE_FOLDER,
) -> Window:
    """Snapshot all writable disks of a running VM at one instant, onto overlays beside their bases.

    The overlays of block devices go to `image_folder`. `vm` is a name or a UUID, `journal` the one of that UUID. Raises
    WindowOpen when an earlier window is unfinished or overlays of ours are found, DomainBusy when another job works on
    the VM, UnsupportedDisk, StoreFull (too little room for the overlays), UnknownName, HypervisorError. Whatever it
    raises, the VM is on its bases and thawed, or the journal is unfinished and `reconcile` will see to it.
    """
    domain = host.domain(vm)
    if (left := journal.open_window()) is not None:
        raise WindowOpen(domain.name, "a snapshot", f"run {left.plan.run} did not end")
    _require_idle(domain)
    # libvirt takes no snapshot of a VM that has checkpoints; the next backup copies its disks whole then.
    backup_job.delete_checkpoints(domain, ())
    description = parse_domain(domain.xml())
    selection = select_disks(description)
    plan = _plan(shell, domain, selection, run_id, image_folder, min_free_bytes)
    journal.append(Step.PREPARE, plan=plan)
    try:
        opening = _Opening(shell, journal, domain, plan, selection, description.guest_agent)
        return opening.snapshot(freeze_deadline_s, quiesce == "auto")
    except BaseException:
        abandon_opening(host, shell, journal)
        raise


def _require_idle(domain: HostDomain) -> None:
    state, _ = domain.state()
    if state not in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED):
        raise HypervisorError(domain.name, "a live snapshot", "the VM does not run; take its image offline")
    if not domain.call("ask what it is", lambda handle: bool(handle.isPersistent())):
        raise HypervisorError(domain.name, "a live snapshot", "the VM has no stored definition (it is transient)")
    job = domain.call("ask for jobs", lambda handle: int(handle.jobInfo()[0]))
    if job != libvirt.VIR_DOMAIN_JOB_NONE:
        raise DomainBusy(domain.name, "a live snapshot", "another job (backup, save or migration) works on the VM")


def _plan(
    shell: HostShell, domain: HostDomain, selection: Selection, run_id: str, folder: str, min_free_bytes: int
) -> WindowPlan:
    """What will be done, after a look at the host's files has shown that it can be."""
    sources = disk_sources.find(shell, domain, selection.taken, shared=True)
    overlays = [
        _overlay_of(domain, disk, source, run_id, folder) for disk, source in zip(selection.taken, sources, strict=True)
    ]
    commands: list[Sequence[str]] = [host_files.BOOT_ID_ARGV]
    for source, overlay in zip(sources, overlays, strict=True):
        commands += [
            host_files.stat_argv(source.path),
            host_files.stat_argv(overlay),
            host_files.free_space_argv(folder_of(overlay)),
        ]
    boot_id, *answers = run_each(shell, commands, deadline_s=SURVEY_DEADLINE_S)
    disks, free = [], list[FreeSpace]()
    for index, (source, overlay) in enumerate(zip(sources, overlays, strict=True)):
        base, there, room = answers[3 * index : 3 * index + 3]
        disks.append(_plan_disk(domain, source, overlay, base, there))
        free.append(host_files.parse_free_space(room, overlay))
    plan = WindowPlan(
        run=run_id,
        vm=domain.name,
        uuid=domain.uuid,
        boot_id=boot_id.stdout.strip(),
        xml=domain.inactive_xml() or "",
        disks=tuple(disks),
    )
    for disk, left in zip(disks, free, strict=True):
        sharing = sum(other.file_system == left.file_system for other in free)
        what = f"{folder_of(disk.overlay)} (overlays of VM {plan.vm})"
        host_files.require_free(left, what, sharing * min_free_bytes)
    return plan


def _overlay_of(domain: HostDomain, disk: Disk, source: DiskSource, run_id: str, folder: str) -> str:
    """Where the disk's overlay lies: beside its file, or for a block device in the folder of images."""
    target = disk.target
    job = domain.call("ask for block jobs", lambda handle: handle.blockJobInfo(target, 0))
    if disk.mirror is not None or job:
        raise DomainBusy(domain.name, "a live snapshot", f"a block job works on disk {target}")
    beside = source.path if source.kind == "file" else f"{folder}/{domain.uuid}-{target}"
    try:
        return overlay_path(beside, run_id)
    except ValueError as exc:
        raise UnsupportedDisk(domain.name, target, str(exc)) from exc


def _plan_disk(
    domain: HostDomain, source: DiskSource, overlay: str, base_said: Output, overlay_said: Output
) -> PlannedDisk:
    base = host_files.parse_stat(base_said, source.path)
    if base is None:
        raise UnsupportedDisk(domain.name, source.target, f"its file {source.path} is missing on {domain.host.name}")
    if host_files.parse_stat(overlay_said, overlay) is not None:
        raise WindowOpen(domain.name, "a snapshot", f"the overlay {overlay} exists already")
    top, *below = source.layers
    return PlannedDisk(
        target=source.target,
        base=top.path,
        format=top.format,
        kind=top.kind,
        volume=source.volume,
        below=tuple(below),
        options=source.options,
        inode=base.inode if top.kind == "file" else 0,
        overlay=overlay,
        virtual_size_bytes=source.virtual_size_bytes,
    )


@dataclass(frozen=True)
class _Opening:
    """The part of an opening that changes something; PREPARE is written."""

    shell: HostShell
    journal: Journal
    domain: HostDomain
    plan: WindowPlan
    selection: Selection
    has_channel: bool

    def snapshot(self, freeze_deadline_s: int, quiesce: bool) -> Window:
        """Freeze, snapshot, thaw, and prove that each disk is on its overlay."""
        with quiesced(
            self.shell,
            self.journal,
            self.domain,
            has_channel=self.has_channel,
            deadline_s=freeze_deadline_s,
            wanted=quiesce,
        ) as held:
            instant = self._take()
        self._note_overlays()
        warnings = list(self.selection.warnings)
        if held.consistency == "crash":
            warnings.append(f"the image is only crash-consistent: {held.reason}")
        left_out = self.selection.left_out
        return Window(self.plan, instant, held.consistency, held.reason, held.frozen_s, left_out, tuple(warnings))

    def _take(self) -> datetime:
        xml = render_snapshot(self.plan, [target for target, _ in self.selection.left_out])

        def create(handle: Any) -> None:
            handle.snapshotCreateXML(xml, _FLAGS)

        with self.journal.step(Step.SNAPSHOT):
            instant = datetime.now(UTC)
            self.domain.call("snapshot", create, deadline_s=INSTANT_DEADLINE_S)
        return instant

    def _note_overlays(self) -> None:
        """Prove from libvirt's XML that each disk is on its overlay, and write down which file that is."""
        live = parse_domain(self.domain.xml())
        files = host_files.stat_files(self.shell, [planned.overlay for planned in self.plan.disks])
        for planned, file in zip(self.plan.disks, files, strict=True):
            disk, base = live.disk(planned.target), (planned.named[1],)
            if disk is None or disk.source != planned.overlay or disk.backing[:1] != base or file is None:
                found = f"{disk.source} on {disk.backing}" if disk else "no disk"
                raise HypervisorError(
                    self.domain.name, f"snapshot of {planned.target}", f"libvirt shows {found} after it"
                )
            self.journal.append(Step.SNAPSHOT, target=planned.target, note=str(file.inode))
