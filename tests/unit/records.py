"""Manifests for tests: complete, with what a test changes given by name."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tasks.model.facts import Facts
from tasks.model.facts_mounts import FileSystem
from tasks.model.manifest import DiskRecord, FileRecord, ImageManifest, NightManifest
from tasks.model.names import new_id
from tasks.model.recovery_record import PutRecord

NIGHT = datetime(2026, 11, 2, 2, 0, tzinfo=UTC)
ZEROS = "0" * 64


def night_manifest(ended: datetime = NIGHT, **changed: Any) -> NightManifest:
    values: dict[str, Any] = {
        "id": new_id(ended),
        "client": "web1",
        "started": ended,
        "ended": ended,
        "outcome": "OK",
        "paths": ("/",),
        "excluded": (),
        "files": 1,
        "size_bytes": 1,
        "listing_sha256": ZEROS,
        "facts_sha256": ZEROS,
    }
    return NightManifest.model_validate(values | changed)


def image_manifest(instant: datetime = NIGHT, **changed: Any) -> ImageManifest:
    values: dict[str, Any] = {
        "id": new_id(instant),
        "vm": "web1",
        "uuid": "90a82260-1496-49c7-872c-574b9ce0acc3",
        "kvm_host": "kvm1",
        "started": instant,
        "ended": instant,
        "instant": instant,
        "method": "offline",
        "method_reason": "it was off",
        "consistency": "application",
        "consistency_reason": "it was off",
        "window_s": 0,
        "copy_s": 1,
        "frozen_s": 0,
        "disks": (DiskRecord(target="vda", file="vda.qcow2", format="qcow2", source="/x.qcow2", virtual_size_bytes=1),),
        "files": (FileRecord(path="vda.qcow2", size_bytes=1, sha256=ZEROS),),
    }
    return ImageManifest.model_validate(values | changed)


def pulled_image(image_id: str = "20261124T000000Z", **changed: Any) -> ImageManifest:
    """An image by the backup API with one disk, vda of 1 GiB."""
    size = 1 << 30
    disk = DiskRecord(target="vda", file="vda.raw", format="raw", source="/images/a.qcow2", virtual_size_bytes=size)
    files = (
        FileRecord(path="vda.raw", size_bytes=size, chunks="vda.raw.chunks"),
        FileRecord(path="vda.raw.chunks", size_bytes=1, sha256=ZEROS),
    )
    values: dict[str, Any] = {"id": image_id, "method": "backup-api", "checkpoint": f"gbs-{image_id}"}
    return image_manifest(**{**values, "disks": (disk,), "files": files, **changed})


def facts(*systems: FileSystem, **changed: Any) -> Facts:
    """Facts that know little but file systems."""
    words = ("hostname", "os_id", "os_version", "os_name", "kernel", "architecture", "machine_id")
    values: dict[str, Any] = {"collected": NIGHT, "boot_mode": "bios", "block_devices": (), "file_systems": systems}
    return Facts(**{**dict.fromkeys(words, "x"), **values, **changed})


def file_system(place: str, source: str, fstype: str, uuid: str) -> FileSystem:
    return FileSystem(mountpoint=place, source=source, fstype=fstype, uuid=uuid, size_bytes=1, used_bytes=1)


def put_record(**changed: Any) -> PutRecord:
    """A recovery of web1 to kvm1 that has put nothing there yet."""
    values: dict[str, Any] = {"run": "r", "vm": "web1", "kvm_host": "kvm1", "name": "web1", "uuid": "u"}
    return PutRecord(**{**values, "image": "i", "night": "n", "isolated": False, "files": (), **changed})
