"""A template's image as another VM's: its files stay, its disks get that VM's targets and places, in order."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

from tasks.errors import RecoveryRefused
from tasks.model.domain_xml import Disk, Domain
from tasks.model.manifest import DiskRecord, ImageManifest, VmParts
from tasks.model.physical_definition import target_of
from tasks.model.window import run_of_overlay


def as_disks_of(image: ImageManifest, domain: Domain) -> ImageManifest:
    """The image with the disks that a definition names; RecoveryRefused when it names more or fewer.

    What else makes the template's VM (UEFI variables, TPM state) is not this one's, and is left out.
    """
    wanted = [disk for disk in domain.disks if disk.device == "disk" and disk.source and not disk.readonly]
    wanted = [disk for disk in wanted if not disk.shareable and disk.type != "network"]
    if len(wanted) != len(image.disks):
        reason = f"its definition has {len(wanted)} disks, template {image.vm}/{image.id} has {len(image.disks)}"
        raise RecoveryRefused(f"VM {domain.name}", reason, "name another one with --template")
    disks = tuple(_disk(record, disk) for record, disk in zip(image.disks, wanted, strict=True))
    return image.model_copy(update={"disks": disks, "parts": VmParts()})


def _disk(record: DiskRecord, disk: Disk) -> DiskRecord:
    # Only a file of the VM's own is a place to go back to; all else becomes a new file (`recovery.place_of`).
    own = disk.type == "file" and run_of_overlay(disk.source) is None
    kind: Literal["file", "block"] = "file" if own else "block"
    source_format: Literal["qcow2", "raw"] = "raw" if disk.format == "raw" else "qcow2"
    return _moved(record, disk.target, disk.source or record.source, kind, source_format)


def as_new_disks(image: ImageManifest, paths: Sequence[str]) -> ImageManifest:
    """The image with disks vda, vdb … at new paths of a KVM host, in qcow2."""
    disks = tuple(
        _moved(record, target_of(number), str(PurePosixPath(path)), "file", "qcow2")
        for number, (record, path) in enumerate(zip(image.disks, paths, strict=True))
    )
    return image.model_copy(update={"disks": disks, "parts": VmParts()})


def _moved(
    record: DiskRecord, target: str, source: str, kind: Literal["file", "block"], source_format: Literal["qcow2", "raw"]
) -> DiskRecord:
    # What a qcow2 file was created with serves only a qcow2 file.
    options = record.options if (record.source_format or record.format) == source_format else ()
    place = {"target": target, "source": source, "source_kind": kind, "volume": "", "increment": ""}
    return record.model_copy(update={**place, "source_format": source_format, "options": options})
