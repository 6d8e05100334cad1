"""The manifest of an image that was taken by the drivers alone, without a flow that publishes it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from tasks.drivers.digest import record
from tasks.model.image_taken import Taken
from tasks.model.manifest import DiskRecord, FileRecord, ImageManifest


def manifest_of(taken: Taken, folder: Path, uuid: str) -> ImageManifest:
    """What the next increment needs to know of an image in `folder`."""
    now = datetime.now(UTC)
    disks = [
        DiskRecord(
            target=disk.target,
            file=disk.file,
            format="raw",
            source=disk.source,
            virtual_size_bytes=disk.virtual_size_bytes,
        )
        for disk in taken.disks
    ]
    files = [
        *(record(folder / f"{disk.file}.chunks", folder) for disk in disks),
        *(FileRecord(path=d.file, size_bytes=d.virtual_size_bytes, chunks=f"{d.file}.chunks") for d in disks),
    ]
    common = {"kvm_host": "kvm1", "started": now, "ended": now, "instant": now, "method_reason": "test"}
    common |= {"consistency": "crash", "consistency_reason": "", "window_s": 0, "copy_s": 0, "frozen_s": 0}
    return ImageManifest.model_validate(
        {
            **common,
            "id": taken.id,
            "vm": "test",
            "uuid": uuid,
            "method": taken.method,
            "checkpoint": taken.checkpoint,
            "parent": taken.parent,
            "disks": disks,
            "files": files,
        }
    )
