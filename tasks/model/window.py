"""The snapshot window: its plan, the records of its journal, and how overlays are named."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import UnsupportedDisk, WindowOpen
from tasks.model.domain_xml import Disk, Domain, SourceKind

NAME_MAX_BYTES = 255
_KINDS = ("file", "block", "volume", "network")
_MARK = ".gbs-"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_OVERLAY = re.compile(r"(?P<base>.+)\.gbs-(?P<run>[A-Za-z0-9][A-Za-z0-9-]{0,63})", re.DOTALL)


class Step(StrEnum):
    """The steps of a window, in order; PAUSE … RESUME enclose the pivots of all disks."""

    PREPARE = "PREPARE"
    FREEZE = "FREEZE"
    SNAPSHOT = "SNAPSHOT"
    THAW = "THAW"
    BACKUP = "BACKUP"
    SHUTDOWN = "SHUTDOWN"
    START = "START"
    COPY = "COPY"
    VERIFY = "VERIFY"
    COMMIT = "COMMIT"
    READY = "READY"
    PAUSE = "PAUSE"
    PIVOT = "PIVOT"
    PIVOTED = "PIVOTED"
    RESUME = "RESUME"
    REDEFINE = "REDEFINE"
    UNLINK = "UNLINK"
    TRASH = "TRASH"
    ALERT = "ALERT"
    PUBLISH = "PUBLISH"
    DONE = "DONE"


Phase = Literal["intent", "done", "failed"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Layer(_Frozen):
    """One file or block device of a disk's chain on the KVM host, and its format."""

    path: str
    format: Literal["qcow2", "raw"]
    kind: Literal["file", "block"] = "file"


class PlannedDisk(_Frozen):
    """A disk of the window: its base as it was before, and the overlay that will be ours."""

    target: str
    base: str
    format: Literal["qcow2", "raw"]
    kind: Literal["file", "block"] = "file"
    volume: str = ""
    """`POOL/VOLUME` where the definition names the base so."""
    below: tuple[Layer, ...] = ()
    """What the base itself lies on, nearest first."""
    options: tuple[str, ...] = ()
    """What a qcow2 base was created with."""
    inode: int
    """Of the base; 0 for a block device, whose node is another after each boot of the host."""
    overlay: str
    virtual_size_bytes: int = Field(gt=0)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The base and what it lies on."""
        return (Layer(path=self.base, format=self.format, kind=self.kind), *self.below)

    @property
    def named(self) -> tuple[SourceKind, str]:
        """How a definition names the base: the type of the disk, and its source."""
        return ("volume", self.volume) if self.volume else (self.kind, self.base)


class WindowPlan(_Frozen):
    """What PREPARE writes down: enough to bring the VM back with nothing else known."""

    run: str
    vm: str
    uuid: str
    boot_id: str
    """Of the KVM host: a freeze does not outlive it."""
    xml: str
    disks: tuple[PlannedDisk, ...]
    scratch: tuple[str, ...] = ()
    """The files of a backup job of ours on the host; such a window has no overlays."""
    restart: bool = False
    """The VM is shut off for a copy and must run again; such a window has no overlays either."""


class Record(_Frozen):
    """One line of a journal: a step's intent, or its result."""

    at: datetime
    step: Step
    phase: Phase = "done"
    target: str = ""
    note: str = ""
    plan: WindowPlan | None = None


@dataclass(frozen=True)
class OpenWindow:
    """An unfinished window and how far it came."""

    plan: WindowPlan
    records: tuple[Record, ...]

    def reached(self, step: Step, target: str = "", phase: Phase | None = None) -> bool:
        """Whether the journal has the step (for that disk), in any phase or in the one given."""
        return any(
            record.step is step and record.target == target and phase in (None, record.phase) for record in self.records
        )

    def pending(self, intent: Step, settled: Step) -> bool:
        """Whether `intent` was begun and nothing since says that `settled` was done."""
        begun = False
        for record in self.records:
            if record.step is intent:
                begun = True
            elif record.step is settled and record.phase == "done":
                begun = False
        return begun


def open_window_of(records: Sequence[Record]) -> OpenWindow | None:
    """The unfinished window of a journal's records, or None when it is empty or ended with DONE."""
    if not records or records[-1].step is Step.DONE:
        return None
    last_done = max((index for index, record in enumerate(records) if record.step is Step.DONE), default=-1)
    current = records[last_done + 1 :]
    plan = next((record.plan for record in current if record.plan is not None), None)
    return OpenWindow(plan, tuple(current)) if plan is not None else None


def overlay_path(base: str, run_id: str) -> str:
    """Where the overlay of the file `base` lies in the window of a run: beside it. ValueError when no such name can be.

    A block device has nothing beside it: give the path of a file that need not exist.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(f"run id {run_id!r} is not made of letters, digits and dashes")
    path = f"{base}{_MARK}{run_id}"
    name = path.rpartition("/")[2].encode("utf-8", "surrogateescape")
    if len(name) > NAME_MAX_BYTES - len(".trash-YYYYmmddTHHMMSSZ"):
        raise ValueError(f"the name of {base} is too long for an overlay beside it")
    return path


def run_of_overlay(path: str | None) -> str | None:
    """The run id in the name of an overlay of ours, or None when the name is not one of ours."""
    match = _OVERLAY.fullmatch(path or "")
    return match["run"] if match else None


@dataclass(frozen=True)
class Selection:
    """Which disks a window takes, and which it leaves out with the reason (target, reason)."""

    taken: tuple[Disk, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an image says of the disks that are not in it."""
        return tuple(f"disk {target} is not in the image: {why}" for target, why in self.left_out)


def select_disks(domain: Domain) -> Selection:
    """The disks of a VM that an image holds, and why not the others.

    Raises WindowOpen when one is on an overlay of ours, UnsupportedDisk for what cannot be taken, or when none can.
    """
    taken, left_out = [], []
    for disk in domain.disks:
        if (run := run_of_overlay(disk.source)) is not None:
            raise WindowOpen(domain.name, "a snapshot", f"disk {disk.target} is on the overlay of run {run}")
        reason = _left_out(disk)
        if reason is None:
            _require_supported(domain.name, disk)
            taken.append(disk)
        else:
            left_out.append((disk.target, reason))
    if not taken:
        raise UnsupportedDisk(domain.name, "(none)", "the VM has no writable disk")
    return Selection(tuple(taken), tuple(left_out))


def _left_out(disk: Disk) -> str | None:
    if disk.device in ("cdrom", "floppy"):
        return f"it is a {disk.device}"
    if disk.source is None:
        return "it is empty"
    for flag, reason in (
        (disk.readonly, "it is read-only"),
        (disk.shareable, "it is shared with other VMs"),
        (disk.transient, "it is transient: its content ends with the VM's run"),
        (disk.type == "network", f"it lies on the network ({disk.source}): back it up where it lies"),
        (disk.type not in _KINDS, f"its source is of type {disk.type!r}"),
        (disk.device == "lun", "it is a LUN that is passed through: back it up where it lies"),
    ):
        if flag:
            return reason
    return None


def _require_supported(vm: str, disk: Disk) -> None:
    for refused, reason in (
        (disk.device != "disk", f"its device is {disk.device!r}"),
        (disk.encrypted, "it is encrypted by libvirt: a copy would hold its content in the clear"),
        (disk.format not in ("qcow2", "raw"), f"its format is {disk.format!r}; qcow2 and raw are supported"),
        (
            disk.type != "volume" and not (disk.source or "").startswith("/"),
            f"its path {disk.source!r} is not absolute",
        ),
    ):
        if refused:
            raise UnsupportedDisk(vm, disk.target, reason)
