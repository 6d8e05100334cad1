"""A VM's disks by the backup API: libvirt freezes an instant of all of them and serves it over NBD while the VM runs.

Only what changed since the last published image travels; the new image begins as that image's clone and is a whole
disk again. Whatever stands against an increment makes the disk be copied whole, with the reason.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks.drivers import backup_job, nbd, process
from tasks.drivers.backup_job import SCRATCH_MARK
from tasks.drivers.backup_survey import Survey, plan, survey
from tasks.drivers.chunks import SUFFIX
from tasks.drivers.image_order import Order
from tasks.drivers.libvirt_host import HostDomain
from tasks.drivers.progress import reporting
from tasks.drivers.quiesce import INSTANT_DEADLINE_S, Quiesced, quiesced
from tasks.drivers.snaplive_settle import abandon_opening
from tasks.drivers.space_watch import SpaceWatch
from tasks.drivers.ssh_forward import forwarded
from tasks.errors import DomainBusy, GbsError, HypervisorError
from tasks.model.backup_xml import BackupDisk, bitmap_of, render_backup, render_checkpoint
from tasks.model.image_taken import Taken, TakenDisk
from tasks.model.increment import DiskNow, DiskPlan, checkpoint_name
from tasks.model.window import Step, WindowPlan

LINK_DEADLINE_S = 60
CLONE_DEADLINE_S = 6 * 3600
_DISK_IN_ERROR = re.compile(r"disk '?([a-z0-9]+)'?")
log = logging.getLogger(__name__)


def take(order: Order) -> Taken:
    """Copy the disks of a running VM, as of one instant: raw files with listings of their chunks.

    The journal has no open window. Raises DomainBusy for somebody else's job, StoreFull when the host has no room for
    scratch files, UnsupportedDisk, CommandFailed. Whatever it raises, the job is ended, the guest thawed and the
    checkpoint gone, or the journal is unfinished and `reconcile` will see to it.
    """
    shell, wishes, parent = order.shell, order.wishes, order.parent
    domain, started = order.host.domain(order.uuid), datetime.now(UTC)
    published = parent.image.checkpoint if parent else None
    backup_job.end(shell, domain, [])  # refuses a job of somebody else
    backup_job.delete_checkpoints(domain, [published] if published else [])
    found = survey(shell, domain, wishes.image_folder, wishes.min_free_bytes)
    plans = plan(found, parent, list(backup_job.checkpoints(domain)), full=wishes.full)
    backup = _Backup(order, domain, found, plans)
    backup.lay_out()
    try:
        instant, held = backup.begin()
        copy_began = time.monotonic()
        moved = backup.pull()
        copy_s = time.monotonic() - copy_began
    except BaseException:
        backup.abandon()
        raise
    backup.finish()
    return Taken(
        id=order.image_id,
        started=started,
        instant=instant,
        method="backup-api",
        method_reason=order.reason,
        consistency=held.consistency,
        consistency_reason=held.reason or "the guest's file systems were frozen for the instant of the backup",
        window_s=0,
        copy_s=copy_s,
        frozen_s=held.frozen_s,
        disks=tuple(backup.taken()),
        tools=order.host.versions(),
        warnings=_warnings(found, held),
        parent=parent.image.id if parent and any(planned.since for planned in plans.values()) else None,
        checkpoint=backup.checkpoint,
        bytes_moved=moved,
    )


def _warnings(found: Survey, held: Quiesced) -> tuple[str, ...]:
    warnings = list(found.selection.warnings)
    if held.consistency == "crash":
        warnings.append(f"the image is only crash-consistent: {held.reason}")
    return tuple(warnings)


@dataclass(frozen=True)
class _Backup:
    """One backup: what is known of the disks, how each is copied, and the job."""

    order: Order
    domain: HostDomain
    survey: Survey
    plans: dict[str, DiskPlan]

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint that is made with this image; None when no disk can keep track of changes."""
        return checkpoint_name(self.order.image_id) if any(disk.bitmaps for disk in self.survey.disks) else None

    @property
    def socket(self) -> str:
        """Where QEMU serves the disks, on the host."""
        return f"{self.survey.qemu_folder}/gbs-{self.order.image_id}"

    @property
    def scratch(self) -> tuple[str, ...]:
        """The scratch files on the host, beside the disks."""
        return tuple(f"{path}{SCRATCH_MARK}{self.order.image_id}" for path in self.survey.beside)

    def lay_out(self) -> None:
        """Make each disk's file: a clone of the parent's, or an empty one."""
        for disk in self.survey.disks:
            self._lay_out(disk)

    def _lay_out(self, disk: DiskNow) -> None:
        file, parent = self.order.folder / f"{disk.target}.raw", self.order.parent
        file.unlink(missing_ok=True)
        if parent is None or self.plans[disk.target].since is None:
            file.touch()
            return
        with reporting(log, f"clone {disk.target} of image {parent.image.id}"):
            argv = ["cp", "--reflink=auto", "--sparse=always", "--", str(parent.folder / file.name), str(file)]
            process.run(argv, deadline_s=CLONE_DEADLINE_S, name=f"clone of {file.name}")

    def begin(self) -> tuple[datetime, Quiesced]:
        """Begin the job at one instant of the guest; a disk whose changes libvirt cannot give is copied whole."""
        self._announce()
        while True:
            try:
                return self._begin_once()
            except DomainBusy:
                raise
            except HypervisorError as exc:
                self._fall_back(exc)

    def _announce(self) -> None:
        plan = WindowPlan(
            run=self.order.image_id,
            vm=self.domain.name,
            uuid=self.domain.uuid,
            boot_id=self.survey.boot_id,
            xml=self.domain.inactive_xml() or "",
            disks=(),
            scratch=self.scratch,
        )
        self.order.journal.append(Step.PREPARE, plan=plan)

    def _begin_once(self) -> tuple[datetime, Quiesced]:
        left_out = [target for target, _ in self.survey.selection.left_out]
        disks = [
            BackupDisk(disk.target, scratch, self.plans[disk.target].since)
            for disk, scratch in zip(self.survey.disks, self.scratch, strict=True)
        ]
        backup = render_backup(self.socket, disks, left_out)
        checkpoint = None
        if self.checkpoint:
            tracked = [disk.target for disk in self.survey.disks if disk.bitmaps]
            others = [*left_out, *(disk.target for disk in self.survey.disks if not disk.bitmaps)]
            checkpoint = render_checkpoint(self.checkpoint, tracked, others)
        with (
            quiesced(
                self.order.shell,
                self.order.journal,
                self.domain,
                has_channel=self.survey.has_agent,
                deadline_s=self.order.wishes.freeze_deadline_s,
            ) as held,
            self.order.journal.step(Step.BACKUP),
        ):
            instant = datetime.now(UTC)
            self.domain.call(
                "begin a backup",
                lambda handle: handle.backupBegin(backup, checkpoint, 0),
                deadline_s=INSTANT_DEADLINE_S,
            )
        return instant, held

    def _fall_back(self, refused: HypervisorError) -> None:
        """Plan to copy whole what libvirt cannot give the changes of: the disk it names, else all; raise if none is."""
        reason = str(refused.args[-1])
        left = [disk for disk in self.survey.disks if self.plans[disk.target].since]
        if not left:
            raise refused
        named = [disk for disk in left if disk.target in _DISK_IN_ERROR.findall(reason)]
        for disk in named or left:
            self.plans[disk.target] = DiskPlan(None, f"libvirt could not give its changes: {reason}")
            self._lay_out(disk)
            log.warning("VM %s: disk %s is copied whole: %s", self.domain.name, disk.target, reason)

    def pull(self) -> int:
        """Copy each disk; the bytes that travelled."""
        watch = SpaceWatch(self.order.host, self.order.shell, self.domain.name, self.domain.uuid, self.survey.folders)
        with self._reachable() as socket:
            return sum(self._pull(disk, socket, watch) for disk in self.survey.disks)

    def _pull(self, disk: DiskNow, socket: Path, watch: Callable[[], None]) -> int:
        file, plan = self.order.folder / f"{disk.target}.raw", self.plans[disk.target]
        chunks = file.with_name(file.name + SUFFIX)
        since = self.order.parent.folder / chunks.name if self.order.parent and plan.since else None
        with reporting(log, f"copy {self.domain.name} {disk.target}") as progress:
            return nbd.pull(
                socket,
                disk.target,
                file,
                disk.virtual_size_bytes,
                bitmap=bitmap_of(disk.target) if plan.since else None,
                chunks=chunks,
                parent_chunks=since,
                deadline_s=self.order.wishes.transfer_deadline_s,
                bytes_per_s=self.order.wishes.bytes_per_s,
                on_progress=progress.update,
                watch=watch,
            )

    @contextmanager
    def _reachable(self) -> Iterator[Path]:
        """The job's socket on this machine, by a plain name on the host: VM names may hold what ssh would expand."""
        link = f"/run/gbs-{self.order.image_id}-{self.domain.uuid}"
        self.order.shell.run(["ln", "-sfT", "--", self.socket, link], deadline_s=LINK_DEADLINE_S)
        try:
            with forwarded(self.order.target, {"backup": link}) as sockets:
                yield sockets["backup"]
        finally:
            self.order.shell.run(["rm", "-f", "--", link], deadline_s=LINK_DEADLINE_S, check=False)

    def finish(self) -> None:
        """End the job; the checkpoint stays for the next increment."""
        backup_job.end(self.order.shell, self.domain, self.scratch)
        self.order.journal.finish()

    def abandon(self) -> None:
        """End the job and take the checkpoint back; what cannot be done now is left to `reconcile` and the next run."""
        abandon_opening(self.order.host, self.order.shell, self.order.journal)
        try:
            published = self.order.parent.image.checkpoint if self.order.parent else None
            backup_job.delete_checkpoints(self.domain, [published] if published else [])
        except GbsError as exc:
            log.warning("VM %s: a checkpoint of ours stays until its next image: %s", self.domain.name, exc)

    def taken(self) -> list[TakenDisk]:
        """What was copied."""
        formats: Mapping[str, str | None] = {disk.target: disk.format for disk in self.survey.selection.taken}
        return [
            TakenDisk(
                target=disk.target,
                source=disk.source,
                source_format="raw" if formats[disk.target] == "raw" else "qcow2",
                virtual_size_bytes=disk.virtual_size_bytes,
                increment=self.plans[disk.target].reason,
                source_kind=source.kind,
                volume=source.volume,
                options=source.options,
            )
            for disk, source in zip(self.survey.disks, self.survey.sources, strict=True)
        ]
