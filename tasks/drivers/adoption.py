"""Make copies of a template's disks a client's: give them its identity, and after the update what makes them boot.

As `tasks.drivers.appliance`, in libguestfs' appliance and a child process. On any error the disks are not to be used.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.drivers.appliance import DiskFile, OnProgress, work
from tasks.model.adoption import Adoption
from tasks.model.boot_repair import Repair
from tasks.model.image_update import MountedBy


@dataclass(frozen=True)
class Bootable:
    """What was done so that the disks boot, and what may keep them from it."""

    done: tuple[str, ...]
    warnings: tuple[str, ...]


def adopt(
    disks: Sequence[DiskFile], wanted: Adoption, *, image: str, deadline_s: float, on_progress: OnProgress
) -> None:
    """Set UUIDs, labels, partition ids and LVM's names on `disks`, copies or overlays of ours; `image` is for messages.

    IntegrityError when a file system is not where the template's shape has it.
    """
    request = {"do": "adopt", "image": image, "adoption": wanted.model_dump()}
    work(disks, request, deadline_s, on_progress)


def make_bootable(
    disks: Sequence[DiskFile],
    mounts: Sequence[MountedBy],
    repair: Repair,
    *,
    image: str,
    deadline_s: float,
    on_progress: OnProgress,
) -> Bootable:
    """See to boot loader, initramfs and names of network cards on disks that hold a night's files already.

    ImageUnfit when a file system is missing, CommandFailed when a tool of the client's could not do it.
    """
    request = {
        "do": "make bootable",
        "image": image,
        "file_systems": [dataclasses.asdict(mount) for mount in mounts],
        "repair": dataclasses.asdict(repair),
    }
    answer = work(disks, request, deadline_s, on_progress)
    return Bootable(tuple(answer["done"]), tuple(answer["warnings"]))
