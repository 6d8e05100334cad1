"""Instant recovery: a VM that runs from the store until its disks have moved to its host."""

from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict

from tasks.model.manifest import DiskRecord
from tasks.model.recovery import Step
from tasks.model.window import Layer


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InstantState(StrEnum):
    """How far a VM that runs from the store has come."""

    STARTING = "starting"
    """It may not have run yet: what there is of it can go."""
    RUNNING = "running"
    """It runs from the store, until it is kept or abandoned."""
    MOVING = "moving"
    """It was told to be kept: its disks move to the host."""


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


class InstantVm(_Frozen):
    """The record of a VM that runs from the store; it lies in the store until the VM is kept or abandoned."""

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
    xml: str
    """Its definition once its disks have moved."""
    dropped: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Where the exports' sockets are on the KVM host."""
        return f"/run/gbs-instant-{self.uuid}"

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
    def line(self) -> str:
        """For a listing of something else."""
        served = "" if self.served else ", its export has ended, run: gbs reconcile"
        todo = f"gbs instant keep|abandon {self.vm}"
        return (
            f"VM {self.vm} on {self.kvm_host} still runs from image {self.image} in the store{served}; end it: {todo}"
        )


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
    steps: tuple[Step, ...] = ()


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
