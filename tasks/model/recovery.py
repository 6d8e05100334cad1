"""What a recovery uses, makes and has done."""

from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict

from tasks.model.manifest import DiskRecord, FileRecord, ImageManifest, NightManifest, TemplateManifest
from tasks.model.names import slug
from tasks.model.outcome import Outcome

OVERLAY = ".overlay"
"""What the name of a disk's overlay ends with, in the folder where an image is updated."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Original(_Frozen):
    """An image of a VM, and the VM's newest definition."""

    vm: str
    kvm_host: str
    """Where its newest definition was found."""
    xml: str
    image_folder: Path
    image: ImageManifest


class Sources(Original):
    """What a VM is brought back from: an image, a night's files, and the definition."""

    client: str
    night_name: str
    night_folder: Path | None
    """None of a night that its engine must bring first."""
    night: NightManifest
    template: TemplateManifest | None = None
    """Set when the image is a template: what its disks are to become must be set on the copy first."""


def growth_bytes(night: NightManifest) -> int:
    """What an update may add to an image, beyond which it would rather need a new image: a quarter of the night."""
    return night.size_bytes // 4


def working_disks(image: ImageManifest) -> tuple[DiskRecord, ...]:
    """The disks of an image as a working copy has them: in the formats that the VM had, so that thin stays thin."""
    return tuple(
        disk.model_copy(update={"format": was, "file": f"{disk.target}.{was}"})
        for disk in image.disks
        for was in (disk.source_format or disk.format,)
    )


def place_of(disk: DiskRecord, vm: str, image_folder: str, *, same_host: bool) -> str:
    """Where a disk goes on a KVM host: where it was, on the host that had it; else to the host's folder of images.

    A disk that was a block device becomes a file: the device may be gone, or another system's by now.
    """
    if disk.source_kind == "block":
        return str(PurePosixPath(image_folder, f"{slug(vm)}-{disk.target}.{disk.format}"))
    return disk.source if same_host else str(PurePosixPath(image_folder, PurePosixPath(disk.source).name))


class UpdatedImage(_Frozen):
    """A copy of an image with a night's files in it, ready to be sent to a KVM host."""

    vm: str
    folder: Path
    image: str
    night: str
    disks: tuple[DiskRecord, ...]
    files: tuple[FileRecord, ...]
    files_changed: int
    files_deleted: int
    bytes_sent: int
    warnings: tuple[str, ...] = ()
    """Images that were of no use for it, and what it lacks and boots without."""
    passing: bool = False
    """It is one run's own and goes with that; else it stays for whoever wants the same."""

    @property
    def outcome(self) -> Outcome:
        """WARNING when something is to be known about it."""
        return Outcome.WARNING if self.warnings else Outcome.OK


class PlacedDisk(_Frozen):
    """A disk that was put on a KVM host."""

    target: str
    path: str
    bytes_sent: int


class Step(_Frozen):
    """A step of a recovery: how long it took, and what it read or sent, if that is what its time depends on."""

    name: str
    seconds: float
    bytes_moved: int = 0


class Recovered(_Frozen):
    """A VM that was brought back, and how. `vm` is the one that was lost, `name` what it is called there."""

    vm: str
    name: str
    uuid: str
    kvm_host: str
    image: str
    night: str
    disks: tuple[PlacedDisk, ...]
    databases: tuple[str, ...]
    probes: tuple[str, ...]
    dropped: tuple[str, ...]
    """What the definition lost on its way through the whitelist."""
    steps: tuple[Step, ...]
    bytes_moved: int
    warnings: tuple[str, ...] = ()
    """What is to be known of it, all the same: an older image, what was repaired so that it boots."""
    problems: tuple[str, ...] = ()
    """What did not come back, or does not answer."""
    gone_on: bool = False
    """An earlier run, which was cut off, had put the VM there: the steps are not all that it takes."""
