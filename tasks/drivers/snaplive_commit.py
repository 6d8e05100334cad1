"""The end of a window on a running VM: commit every overlay into its base, then pivot all disks in one short pause.

The pause closes the one gap that no later look could tell apart: QEMU on the base, the definition still on the overlay,
and the host dead before libvirt wrote it down. While the VM is paused, committing again changes nothing.
"""

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import libvirt

from tasks.drivers.dead_man import armed
from tasks.drivers.host_shell import HostShell
from tasks.drivers.journal import Journal
from tasks.drivers.libvirt_host import Host, HostDomain
from tasks.drivers.snaplive_evidence import VmView, job_of, look, source_of
from tasks.errors import HypervisorError, LeftBehind
from tasks.model.window import PlannedDisk, Step, WindowPlan
from tasks.model.window_decision import Job, Power, Source

OnProgress = Callable[[str, int, int], None]
"""Told the disk targets under way, and the bytes that are committed of how many."""
PIVOT_TRIES = 3
PIVOT_DEADLINE_S = 60
PAUSE_LIMIT_S = 30
_POLL_FIRST_S, _POLL_LAST_S = 0.01, 0.5


class PowerChanged(Exception):
    """The VM stopped, or the disk is no longer what it was, while we worked on it."""


@dataclass(frozen=True)
class RunningCommit:
    """The VM of a window, and by what it is reached."""

    host: Host
    shell: HostShell
    journal: Journal
    domain: HostDomain
    plan: WindowPlan

    def run(self, disks: Sequence[PlannedDisk], *, deadline_s: float, on_progress: OnProgress | None = None) -> None:
        """Bring the disks of a running VM, which are on their overlays, back to their bases.

        A commit that runs already is adopted. Raises LeftBehind with the exact command when a disk stays on its overlay
        (its job is then ended, the VM runs on), PowerChanged when the VM stopped meanwhile.
        """
        view = self._look()
        for disk in disks:
            if job_of(view, disk) is Job.NONE:
                self._start(disk)
        self._await_ready(disks, time.monotonic() + deadline_s, on_progress)
        left, reasons = list(disks), dict[str, str]()
        for attempt in range(PIVOT_TRIES):
            time.sleep(attempt)
            with self._paused():
                reasons = {disk.target: reason for disk in left if (reason := self._pivot(disk)) is not None}
            left = [disk for disk in left if disk.target in reasons]
            if not left:
                return
        self._give_up(left[0], f"the pivot was refused {PIVOT_TRIES} times: {reasons[left[0].target]}")

    def _look(self) -> VmView:
        return look(self.host, self.plan.uuid, others=False)

    def _start(self, disk: PlannedDisk) -> None:
        with self.journal.step(Step.COMMIT, disk.target):
            flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
            self.domain.call(
                f"commit of disk {disk.target}",
                lambda handle: handle.blockCommit(disk.target, disk.base, disk.overlay, 0, flags),
            )

    def _await_ready(self, disks: Sequence[PlannedDisk], ends_at: float, on_progress: OnProgress | None) -> None:
        """Wait until libvirt shows `<mirror ready='yes'>` on all disks; `cur == end` is not that."""
        pause_s = _POLL_FIRST_S
        waiting = list(disks)
        while True:
            view = self._look()
            waiting = [disk for disk in waiting if not self._is_ready(view, disk)]
            if on_progress is not None:
                on_progress(", ".join(disk.target for disk in disks), *self._progress(disks))
            if not waiting:
                return
            if time.monotonic() > ends_at:
                self._give_up(waiting[0], "its commit did not get ready before the deadline")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_LAST_S)

    def _is_ready(self, view: VmView, disk: PlannedDisk) -> bool:
        if view.power is not Power.ON or source_of(view.live, disk) is not Source.OVERLAY:
            raise PowerChanged
        job = job_of(view, disk)
        if job is Job.READY:
            self.journal.append(Step.READY, target=disk.target)
        elif job is not Job.ACTIVE:
            self._give_up(disk, f"its commit ended before it was ready ({job})")
        return job is Job.READY

    def _progress(self, disks: Sequence[PlannedDisk]) -> tuple[int, int]:
        def ask(handle: Any) -> list[dict[str, int]]:
            return [handle.blockJobInfo(disk.target, 0) or {} for disk in disks]

        jobs = self.domain.call("ask for block jobs", ask)
        return sum(job.get("cur", 0) for job in jobs), sum(job.get("end", 0) for job in jobs)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Run the body with the VM paused, unless it is paused anyway; it resumes whatever the body does."""
        state = self.domain.state()
        if state[0] != libvirt.VIR_DOMAIN_RUNNING:
            yield
            if state == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR):
                # The overlay's file system was full; the disk it writes to now is another.
                resume(self.journal, self.domain)
            return
        with armed(self.shell, self.domain, "resume", PAUSE_LIMIT_S):
            self.journal.append(Step.PAUSE, "intent")
            try:
                self.domain.call("suspend", lambda handle: handle.suspend())
                yield
            finally:
                resume(self.journal, self.domain)

    def _pivot(self, disk: PlannedDisk) -> str | None:
        """Pivot a disk and prove it from the live and the inactive XML; the reason when it is still on its overlay."""
        self.journal.append(Step.PIVOT, "intent", disk.target)
        reason = "the definitions do not show the base after the pivot"
        try:
            self.domain.call(
                f"pivot of disk {disk.target}",
                lambda handle: handle.blockJobAbort(disk.target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT),
                deadline_s=PIVOT_DEADLINE_S,
            )
        except HypervisorError as exc:
            reason = str(exc.args[-1])
        view = self._look()
        if _on_base(view, disk):
            self.journal.append(Step.PIVOTED, target=disk.target)
            return None
        self.journal.append(Step.PIVOT, "failed", disk.target, reason)
        if view.power is not Power.ON:
            raise PowerChanged
        return reason

    def _give_up(self, disk: PlannedDisk, reason: str) -> NoReturn:
        """End the disk's job, if it has one, and leave the VM running on its overlay."""
        target = disk.target
        try:
            self.domain.call(
                "end the commit", lambda handle: handle.blockJobAbort(target, 0), deadline_s=PIVOT_DEADLINE_S
            )
        except HypervisorError as exc:
            reason += f"; its job could not be ended: {exc.args[-1]}"
        where = f"VM {self.domain.name}, disk {target}, on overlay {disk.overlay} on {self.host.name}"
        raise LeftBehind(where, reason, undo_command(self.domain, disk))


def resume(journal: Journal, domain: HostDomain) -> None:
    """Let a paused VM go on; harmless when it runs, or has ended."""
    journal.append(Step.RESUME, "intent")
    if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
        domain.call("resume", lambda handle: handle.resume())
    journal.append(Step.RESUME)


def undo_command(domain: HostDomain, disk: PlannedDisk) -> str:
    """What an operator types on the host to bring the disk back by hand."""
    argv = ["virsh", "--connect", domain.host.local_uri, "blockcommit", domain.uuid, disk.target]
    return shlex.join([*argv, "--base", disk.base, "--active", "--pivot", "--wait", "--verbose"])


def _on_base(view: VmView, disk: PlannedDisk) -> bool:
    live, inactive = source_of(view.live, disk), source_of(view.inactive, disk)
    return live is Source.BASE and inactive in (Source.BASE, None)
