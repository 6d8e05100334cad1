"""How a window ends, in good order or after a crash: look, decide per disk, act, and look again until nothing is left.

Every action can be killed at any point and taken again: what counts is what libvirt and the files say, not what we
remember. Closing a window and reconciling one that was left are the same loop.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import libvirt

from tasks.drivers import backup_job, guest_agent, host_files
from tasks.drivers.host_shell import HostShell
from tasks.drivers.journal import Journal
from tasks.drivers.libvirt_host import Host, HostDomain
from tasks.drivers.shut_off import settle_restart
from tasks.drivers.snaplive_actions import commit_offline, redefine, remove_overlays
from tasks.drivers.snaplive_commit import OnProgress, PowerChanged, RunningCommit, resume, undo_command
from tasks.drivers.snaplive_evidence import VmView, evidence, files_of, look, source_of
from tasks.errors import GbsError, HypervisorError, LeftBehind
from tasks.model.window import OpenWindow, PlannedDisk, Step
from tasks.model.window_decision import Action, Decision, Power, Source, decide

COMMIT_DEADLINE_S = 6 * 3600
WAIT_DEADLINE_S = 120
_PASSES = 12
_LOOKS = 5
_ALIVE = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED)
_PAUSED_BY_US = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
_RUNNING = frozenset({Action.COMMIT, Action.ADOPT})
_OFFLINE = frozenset({Action.COMMIT_OFFLINE})
_DEFINITION = frozenset({Action.REDEFINE})
# Guest data first, overlays last.
_ORDER = (_RUNNING, _OFFLINE, _DEFINITION, frozenset({Action.UNLINK}), frozenset({Action.TRASH}))
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiskOutcome:
    """How one disk of a window ended: what was done last to it and why, and whether it is on its base for good."""

    vm: str
    target: str
    action: Action
    reason: str
    settled: bool
    overlay: str
    undo: str = ""
    """For an operator, when it is not settled."""


def close_window(
    host: Host,
    shell: HostShell,
    journal: Journal,
    *,
    commit_deadline_s: float = COMMIT_DEADLINE_S,
    on_progress: OnProgress | None = None,
    finish: bool = True,
) -> list[DiskOutcome]:
    """Bring the VM of the open window back to its bases, remove the overlays and write DONE (unless `finish` is false).

    Raises LeftBehind, naming the disk and the command, when a disk cannot be brought back; the VM then runs on, and the
    journal stays unfinished. Nothing happens without an open window.
    """
    outcomes = reconcile(
        host, shell, journal, commit_deadline_s=commit_deadline_s, on_progress=on_progress, finish=finish
    )
    for outcome in outcomes:
        if not outcome.settled:
            where = f"VM {outcome.vm}, disk {outcome.target}, overlay {outcome.overlay} on {host.name}"
            raise LeftBehind(where, outcome.reason, outcome.undo or "gbs reconcile")
    return outcomes


def reconcile(
    host: Host,
    shell: HostShell,
    journal: Journal,
    *,
    commit_deadline_s: float = COMMIT_DEADLINE_S,
    on_progress: OnProgress | None = None,
    finish: bool = True,
) -> list[DiskOutcome]:
    """Settle an unfinished window as far as libvirt's XML proves what may be done; one outcome for each disk.

    A frozen guest is thawed and a VM that we paused goes on first. The VM ends in the state it is in: one that is shut
    off stays so. Empty without an unfinished window. Raises only what keeps it from looking (Unreachable …).
    """
    window = journal.open_window()
    if window is None:
        return []
    domain = host.find_uuid(window.plan.uuid)
    trouble = ""
    if domain is not None:
        trouble = _await_snapshot(window, domain) or _let_go(shell, journal, window, domain)
    if window.plan.scratch:
        outcomes = [_end_backup(shell, window, domain)]
    elif window.plan.restart:
        outcomes = [_end_shutdown(journal, window, domain)]
    else:
        outcomes = _Settling(host, shell, journal, commit_deadline_s, on_progress).run()
    if trouble:
        outcomes = [
            DiskOutcome(o.vm, o.target, Action.HANDS_OFF, trouble, settled=False, overlay=o.overlay) for o in outcomes
        ]
    if finish and all(outcome.settled for outcome in outcomes):
        journal.finish()
    return outcomes


def _end_backup(shell: HostShell, window: OpenWindow, domain: HostDomain | None) -> DiskOutcome:
    """End the backup job that a window left; it changed nothing of the VM, but its scratch files grow."""
    plan, settled, reason = window.plan, True, "its backup job is ended"
    try:
        if domain is not None:
            backup_job.end(shell, domain, plan.scratch)
        else:
            host_files.remove(shell, plan.scratch)
    except HypervisorError as exc:
        settled, reason = False, f"its backup job could not be ended: {exc.args[-1]}"
    undo = "" if settled or domain is None else f"virsh --connect {domain.host.local_uri} domjobabort {plan.uuid}"
    return DiskOutcome(plan.vm, "backup job", Action.UNLINK, reason, settled, plan.scratch[0], undo)


def _end_shutdown(journal: Journal, window: OpenWindow, domain: HostDomain | None) -> DiskOutcome:
    plan = window.plan
    settled, reason = settle_restart(journal, window, domain)
    undo = "" if settled or domain is None else f"virsh --connect {domain.host.local_uri} start {plan.uuid}"
    return DiskOutcome(plan.vm, "power", Action.START, reason, settled, "", undo)


def abandon_opening(host: Host, shell: HostShell, journal: Journal) -> None:
    """After an opening that failed: back to the bases if that can be done now, else leave it to `reconcile`."""
    try:
        reconcile(host, shell, journal)
    except GbsError as exc:
        _log.warning("the window that failed to open stays for gbs reconcile: %s", exc)


def _await_snapshot(window: OpenWindow, domain: HostDomain) -> str:
    """Wait for a snapshot that libvirt may still be taking, though the one who asked for it has died."""
    # A failure that was written down may be our deadline's, not libvirt's.
    if window.reached(Step.SNAPSHOT, "", "done") or not window.reached(Step.SNAPSHOT, "", "intent"):
        return ""
    ends_at = time.monotonic() + WAIT_DEADLINE_S
    while domain.state()[0] in _ALIVE and domain.call("ask for jobs", _job_of) != libvirt.VIR_DOMAIN_JOB_NONE:
        if time.monotonic() > ends_at:
            return "libvirt may still be taking the snapshot"
        time.sleep(0.5)
    return ""


def _job_of(handle: Any) -> int:
    return int(handle.jobInfo()[0])


def _let_go(shell: HostShell, journal: Journal, window: OpenWindow, domain: HostDomain) -> str:
    """Resume and thaw what we paused and froze; the reason why the guest may still be frozen, or nothing."""
    if window.pending(Step.PAUSE, Step.RESUME) and domain.state() == _PAUSED_BY_US:
        resume(journal, domain)
    if not window.pending(Step.FREEZE, Step.THAW) or host_files.boot_id(shell) != window.plan.boot_id:
        return ""
    state = domain.state()[0]
    if state == libvirt.VIR_DOMAIN_PAUSED:
        return "the guest may still be frozen, and cannot be thawed while the VM is paused"
    if state != libvirt.VIR_DOMAIN_RUNNING:
        return ""
    try:
        guest_agent.thaw(domain, journal)
    except HypervisorError as exc:
        return f"the guest may still be frozen: {exc.args[-1]}"
    return ""


class _Settling:
    """The loop: each look gives a decision per disk, one kind of action is taken, then everything is looked at anew."""

    def __init__(
        self, host: Host, shell: HostShell, journal: Journal, deadline_s: float, on_progress: OnProgress | None
    ) -> None:
        self.host, self.shell, self.journal = host, shell, journal
        self.deadline_s, self.on_progress = deadline_s, on_progress
        self.done: dict[str, Decision] = {}
        self.failed: dict[str, GbsError] = {}

    def run(self) -> list[DiskOutcome]:
        """Settle what can be settled; one outcome for each disk."""
        wait_until = time.monotonic() + WAIT_DEADLINE_S
        for _ in range(_PASSES):
            window, view, decisions = self._look()
            while any(d.action is Action.WAIT for d in decisions.values()) and time.monotonic() < wait_until:
                time.sleep(0.5)
                window, view, decisions = self._look()
            todo = {d: decisions[d.target] for d in window.plan.disks if d.target not in self.failed}
            group = next((g for g in _ORDER if any(decision.action in g for decision in todo.values())), None)
            if group is None:
                break
            disks = [disk for disk, decision in todo.items() if decision.action in group]
            self._act(group, window, view, disks)
            self.done |= {disk.target: decisions[disk.target] for disk in disks}
        return [self._outcome(window, view, disk, decisions[disk.target]) for disk in window.plan.disks]

    def _look(self) -> tuple[OpenWindow, VmView, dict[str, Decision]]:
        """The journal, the VM and what is to be done; a VM that stops while it is looked at is looked at again."""
        window = self.journal.open_window()
        if window is None:
            raise HypervisorError("", "reconcile", f"the journal {self.journal.path} was finished by somebody else")
        for attempt in range(_LOOKS):
            try:
                view = look(self.host, window.plan.uuid)
                files = files_of(self.shell, window, view)
                disks = window.plan.disks
                return window, view, {d.target: decide(evidence(window, view, d, files[d.target])) for d in disks}
            except HypervisorError:
                if attempt == _LOOKS - 1:
                    raise
                time.sleep(0.5)
        raise AssertionError

    def _act(self, group: frozenset[Action], window: OpenWindow, view: VmView, disks: Sequence[PlannedDisk]) -> None:
        if view.domain is None:
            return
        try:
            if group == _RUNNING:
                RunningCommit(self.host, self.shell, self.journal, view.domain, window.plan).run(
                    disks, deadline_s=self.deadline_s, on_progress=self.on_progress
                )
            elif group == _OFFLINE:
                commit_offline(self.shell, self.journal, disks, self.deadline_s)
                redefine(self.host, self.journal, view.domain, disks)
            elif group == _DEFINITION:
                redefine(self.host, self.journal, view.domain, disks)
            else:
                remove_overlays(self.shell, self.journal, disks, keep=group == frozenset({Action.TRASH}))
        except PowerChanged:
            _log.info("VM %s changed its state while its window was closed; looking again", window.plan.vm)
        except GbsError as exc:
            if exc.transient and not isinstance(exc, HypervisorError):
                raise
            if look(self.host, window.plan.uuid, others=False).power is view.power:
                self.failed |= {disk.target: exc for disk in disks}

    def _outcome(self, window: OpenWindow, view: VmView, disk: PlannedDisk, decision: Decision) -> DiskOutcome:
        target, failure = disk.target, self.failed.get(disk.target)
        settled = decision.action is Action.NOTHING
        last = self.done.get(target, decision) if settled else decision
        reason = last.reason if failure is None or settled else f"{last.reason}, but {_reason_of(failure)}"
        if not settled:
            _alert(self.journal, window, target, reason)
        undo = ""
        if not settled and view.domain is not None and view.power is Power.ON:
            on_overlay = source_of(view.live, disk) is Source.OVERLAY
            undo = undo_command(view.domain, disk) if on_overlay else ""
        return DiskOutcome(window.plan.vm, target, last.action, reason, settled, disk.overlay, undo)


def _reason_of(failure: GbsError) -> str:
    return str(failure.args[1]) if isinstance(failure, LeftBehind) else str(failure)


def _alert(journal: Journal, window: OpenWindow, target: str, reason: str) -> None:
    """Write an alert down, once for each reason."""
    said = [record.note for record in window.records if record.step is Step.ALERT and record.target == target]
    if not said or said[-1] != reason:
        journal.append(Step.ALERT, target=target, note=reason)
