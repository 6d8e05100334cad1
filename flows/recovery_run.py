"""A recovery under way, as a disaster and a drill have it: assessed, put on a KVM host, served, all of it measured."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from flows.kvmimg_update import update_image
from tasks import recovery, recovery_assessment, updating
from tasks.errors import GbsError
from tasks.model.assessment import DEFINE, PROBE, RESTORE, SEND, UPDATE, Work
from tasks.model.domain_recovery import Rewritten
from tasks.model.inventory_systems import Probe
from tasks.model.manifest import DumpRecord
from tasks.model.recovery import PlacedDisk, Sources, Step
from tasks.model.recovery_plan import Order, Plan

log = logging.getLogger(__name__)
Restore = Callable[[str, Sequence[DumpRecord]], Sequence[str]]
Hold = Callable[[Probe], str]


class Steps:
    """What was done and how long each step took, in order."""

    def __init__(self) -> None:
        self.taken: list[Step] = []

    @contextmanager
    def step(self, name: str, bytes_moved: int = 0) -> Iterator[None]:
        """Measure a step."""
        began = time.monotonic()
        yield
        self.taken.append(Step(name=name, seconds=time.monotonic() - began, bytes_moved=bytes_moved))


@dataclass
class RecoveryRun:
    """What it is of, what was done, how long each step took, what an operator must know of it."""

    sources: Sources
    order: Order
    plan: Plan
    work: Work
    steps: Steps = field(default_factory=Steps)
    disks: list[PlacedDisk] = field(default_factory=list)
    databases: list[str] = field(default_factory=list)
    probes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    dropped: tuple[str, ...] = ()
    image: str = ""
    """The image that was updated; empty when an earlier run had done that."""
    instead_of: str = ""
    """The image that was chosen first, where it was given up for an older one."""
    bytes_moved: int = 0
    gone_on: bool = False
    """An earlier run had put the VM there."""


def planned(sources: Sources, order: Order) -> RecoveryRun:
    """A recovery of which nothing was done yet."""
    plan = recovery_assessment.plan(sources, order)
    return RecoveryRun(sources, order, plan, recovery_assessment.work_of(sources, plan))


def begin(run: RecoveryRun, instead_of: str | None = None) -> Rewritten:
    """Assess it once more, now that nothing else of ours can be in the way, and note what will be put where.

    `instead_of`: the image that was chosen first.
    """
    run_id = recovery.new_run()
    assessment, rewritten = recovery_assessment.assess(run.sources, run.order, run.plan, run_id)
    for finding in assessment.findings:
        if finding.verdict != "refused":
            log.warning("%s", finding.words)
    assessment.require_possible()
    recovery.begin(run.sources, run.plan, run_id, instead_of, rewritten.dropped)
    return rewritten


def put(run: RecoveryRun, rewritten: Rewritten) -> None:
    """Update the image, bring it to the KVM host, define and start the VM; after a failure `recovery.undo` is due."""
    with run.steps.step(UPDATE, run.work.read_bytes):
        updated = update_image(run.sources)
    run.warnings += updated.warnings
    try:
        rewritten = _of_image(run, updated.image, rewritten)
        recovery.note_working_copy(run.plan, updated)
        with run.steps.step(SEND, run.work.send_bytes):
            run.disks += [recovery.send_disk(updated, place, run.plan) for place in run.plan.disks]
            for place in run.plan.parts:
                recovery.send_part(run.sources, place, run.plan)
        if not run.order.apart:
            recovery.require_silent(run.sources.client)  # it was when this began, some hours ago
        with run.steps.step(DEFINE):
            recovery.start(run.sources, run.plan, rewritten)
    finally:
        updating.remove(updated.folder)
    run.dropped, run.image = rewritten.dropped, updated.image
    run.bytes_moved = updated.bytes_sent + sum(disk.bytes_sent for disk in run.disks)


def _of_image(run: RecoveryRun, image: str, rewritten: Rewritten) -> Rewritten:
    """The definition, all noted anew if an older image had to be taken: its disks and parts may differ."""
    if image == run.sources.image.id:
        return rewritten
    run.instead_of, run.sources = run.sources.image.id, updating.with_image(run.sources, image)
    run.plan = recovery_assessment.plan(run.sources, run.order)
    return begin(run, run.instead_of)


def restore_each(run: RecoveryRun, restore: Restore) -> None:
    """Have the night's dumps restored, engine by engine; what goes wrong is a problem of the run."""
    for called in dict.fromkeys(dump.called for dump in run.sources.night.dumps):
        dumps = [dump for dump in run.sources.night.dumps if dump.called == called]
        with _noting(run):
            run.databases += restore(called, dumps)


def serve(run: RecoveryRun, restore: Restore | None, probes: Sequence[Probe], hold: Hold) -> None:
    """Restore the night's dumps, if they are to be, and run the probes; what goes wrong is a problem of the run."""
    if restore is not None and run.sources.night.dumps:
        with run.steps.step(RESTORE):
            restore_each(run, restore)
    if probes:
        with run.steps.step(PROBE):
            for probe in probes:
                with _noting(run):
                    run.probes.append(hold(probe))


@contextmanager
def _noting(run: RecoveryRun) -> Iterator[None]:
    try:
        yield
    except GbsError as exc:
        run.problems.append(str(exc))
