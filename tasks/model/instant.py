"""Instant recovery: a VM that runs from the store until its disks have moved to its host."""

import heapq
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict

from tasks.model.manifest import DiskRecord
from tasks.model.recovery import Step
from tasks.model.recovery_plan import Plan
from tasks.model.recovery_record import FileId, PutFile, PutRecord
from tasks.model.window import Layer

CLUSTER_BYTES = 65536
"""Of a qcow2 file by default."""
_AT_ONCE_BYTES = (2 << 30) - CLUSTER_BYTES
"""QEMU takes requests below 2 GiB."""
_WORTH_NOTING_BYTES = 4 << 20
_NOTED = 1000
"""A command line of one word has 128 KiB."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InstantState(StrEnum):
    """How far a VM that runs from the store has come."""

    STARTING = "starting"
    """It may not have run yet: as long as the host does not know it, what there is of it can go."""
    RUNNING = "running"
    """It runs from the store, until it is kept or abandoned."""
    OFF = "off"
    """It was found shut off: its host was restarted, or somebody shut it down. What it wrote is in its overlays."""
    MOVING = "moving"
    """It was told to be kept: its disks move to the host."""
    MOVED = "moved"
    """Its disks are on its host, nothing is read from the store any more; its image is yet to be verified."""


class InstantDisk(_Frozen):
    """A disk that is read from the store; what the VM writes goes into an overlay on its host."""

    target: str
    served: Layer
    """The file that is exported, on this server."""
    overlay: str
    """The overlay's path on the KVM host. It becomes the disk."""
    size_bytes: int
    moved_bytes_at_most: int
    """What the file takes on this server, which the overlay may grow by."""
    made: FileId | None = None
    """Which file the overlay is; None until it was made."""

    @property
    def file(self) -> PutFile:
        """The overlay, as what is known of it."""
        return PutFile(role=self.target, path=self.overlay, **(self.made._asdict() if self.made else {}))


class InstantVm(_Frozen):
    """The record of a VM that runs from the store; it lies in the store until the VM is kept or abandoned."""

    run: str = ""
    """Marks the VM's definition: one of its UUID that does not bear it is somebody else's."""
    vm: str
    uuid: str
    kvm_host: str
    image: str
    image_folder: Path
    night: str | None
    """The night whose files are in it; None for the image as it is."""
    working_copy: Path | None = None
    """What goes with the record: a copy of the image that was brought up to the night."""
    state: InstantState
    started: AwareDatetime
    disks: tuple[InstantDisk, ...]
    parts: tuple[PutFile, ...] = ()
    """Its UEFI variables, TPM state or kernel: they are on the host from the start."""
    xml: str
    """Its definition once its disks have moved."""
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What the update of its working copy had to say."""

    @property
    def folder(self) -> str:
        """Where the exports' sockets are on the KVM host."""
        return f"/run/gbs-instant-{self.uuid}"

    @property
    def put(self) -> PutRecord:
        """What is put on the host besides the overlays, as the record of a recovery has it."""
        return PutRecord(
            run=self.run,
            vm=self.vm,
            kvm_host=self.kvm_host,
            name=self.vm,
            uuid=self.uuid,
            image=self.image,
            night=self.night or "",
            isolated=False,
            files=self.parts,
        )

    def socket(self, target: str) -> str:
        """The socket on the KVM host by which QEMU reads a disk; the same for as long as the record lasts."""
        return f"{self.folder}/{target}"


class InstantRow(_Frozen):
    """One VM that runs from the store, for listings."""

    vm: str
    kvm_host: str
    state: InstantState
    image: str
    night: str | None
    since: AwareDatetime
    served: bool
    """Whether its export runs; a VM whose export does not is paused at its next read."""

    @property
    def is_well(self) -> bool:
        """Whether nobody needs to look at it."""
        return self.served and self.state is not InstantState.OFF

    @property
    def line(self) -> str:
        """For a listing of something else."""
        where, end = f"VM {self.vm} on {self.kvm_host}", f"gbs instant keep|abandon {self.vm}"
        if self.state is InstantState.MOVED:
            return f"{where} has moved there; image {self.image} that it came from is yet to be verified: gbs reconcile"
        if self.state is InstantState.OFF:
            kept = f"what it wrote is in its overlays; {how_to_go_on(self.vm)}"
            return f"{where}, which ran from image {self.image} in the store, is shut off; {kept}"
        served = "" if self.served else ", its export has ended, run: gbs reconcile"
        return f"{where} still runs from image {self.image} in the store{served}; end it: {end}"


class Instant(_Frozen):
    """What became of a VM that was started from the store."""

    vm: str
    uuid: str
    kvm_host: str
    ended: bool
    """Whether nothing is read from the store any more."""
    done: str
    """started, kept or abandoned."""
    image: str
    night: str | None
    disks: tuple[str, ...]
    notes: tuple[str, ...]
    """What the operator should know: whose files these are, what was proven, what was dropped."""
    warnings: tuple[str, ...] = ()
    """What is not as it was asked for."""
    steps: tuple[Step, ...] = ()


def how_to_go_on(vm: str) -> str:
    """What an operator may do with a VM that is shut off before it has moved."""
    return f"gbs instant start {vm} starts it again, keep moves it as it is, abandon loses what it wrote"


def on_overlays(plan: Plan, disks: Iterable[DiskRecord]) -> Plan:
    """A recovery's plan, for disks that begin as overlays on the store."""
    records = {disk.target: disk for disk in disks}
    places = tuple(
        place.model_copy(update={"path": overlay_of(records[place.role], place.path), "format": "qcow2", "volume": ""})
        for place in plan.disks
    )
    return plan.model_copy(update={"disks": places})


def notable(zeroes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of where a disk is zero (offset, length), what is worth noting in an overlay: whole clusters, the largest."""
    found = []
    for offset, length in zeroes:
        first, end = -(-offset // CLUSTER_BYTES) * CLUSTER_BYTES, (offset + length) // CLUSTER_BYTES * CLUSTER_BYTES
        found += [(each, min(_AT_ONCE_BYTES, end - each)) for each in range(first, end, _AT_ONCE_BYTES)]
    worth = [each for each in found if each[1] >= _WORTH_NOTING_BYTES]
    return sorted(heapq.nlargest(_NOTED, worth, key=lambda each: each[1]))


def overlay_of(disk: DiskRecord, path: str) -> str:
    """Where the overlay of a disk goes whose old place is `path`: it is qcow2, and its name does not say otherwise."""
    return path if disk.source_format == "qcow2" and path.endswith(".qcow2") else f"{path}.qcow2"


def notes_of(record: InstantVm) -> tuple[str, ...]:
    """What the operator should know of a VM that was started from the store."""
    lost = tuple(f"dropped from its definition: {what}" for what in record.dropped)
    if record.night is None:
        files = f"it has the files of image {record.image}, of no later night"
        return (files, "the image was not read before the start: its checksums are compared once the VM is kept", *lost)
    databases = "its databases are those of the image: the night's dumps lie in it and were not loaded"
    return (f"it has the files of night {record.night}", databases, *lost)


def warnings_of(record: InstantVm) -> tuple[str, ...]:
    """What of a VM that was started from the store is not as it was asked for."""
    off = record.state is InstantState.OFF
    return (*((f"it is shut off: {how_to_go_on(record.vm)}",) if off else ()), *record.warnings)
