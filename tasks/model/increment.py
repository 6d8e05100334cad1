"""Whether an image can begin as a clone of the last published one: decided per disk, and any doubt means all of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tasks.model.manifest import DiskRecord, ImageManifest

CHECKPOINT = "gbs-"
"""How the checkpoints of ours begin; the image's id follows."""


@dataclass(frozen=True)
class DiskNow:
    """A disk as the VM has it now; `bitmaps` says whether its format can carry them (qcow2 version 3)."""

    target: str
    source: str
    virtual_size_bytes: int
    bitmaps: bool


@dataclass(frozen=True)
class DiskPlan:
    """The checkpoint that a disk's changes are copied since, or None for all of it, and why."""

    since: str | None
    reason: str


def checkpoint_name(image_id: str) -> str:
    """The checkpoint that is made with an image."""
    return f"{CHECKPOINT}{image_id}"


def plan_increment(
    parent: ImageManifest | None, disks: Sequence[DiskNow], checkpoints: Collection[str], *, full: bool = False
) -> Mapping[str, DiskPlan]:
    """How each disk is copied. `parent` is the last published image, `checkpoints` are those that libvirt knows."""
    return {disk.target: _plan(parent, disk, checkpoints, full) for disk in disks}


def _plan(parent: ImageManifest | None, disk: DiskNow, checkpoints: Collection[str], full: bool) -> DiskPlan:
    reason = _why_full(parent, disk, checkpoints, full)
    since = parent.checkpoint if parent is not None and reason is None else None
    if parent is None or since is None:
        return DiskPlan(None, reason or "there is no image to begin with")
    return DiskPlan(since, f"its changes since image {parent.id}")


def _why_full(parent: ImageManifest | None, disk: DiskNow, checkpoints: Collection[str], full: bool) -> str | None:
    if full:
        return "a full copy was asked for"
    if parent is None:
        return "there is no image to begin with"
    before = next((one for one in parent.disks if one.target == disk.target), None)
    reasons = (
        (parent.checkpoint is None, f"image {parent.id} was taken without a checkpoint"),
        (parent.checkpoint not in checkpoints, f"libvirt does not know the checkpoint of image {parent.id} any more"),
        (not disk.bitmaps, "its format cannot keep track of changes"),
        (before is None, f"image {parent.id} does not have it"),
    )
    found = next((reason for applies, reason in reasons if applies), None)
    return found or (_why_another(before, disk) if before else None)


def _why_another(before: DiskRecord, disk: DiskNow) -> str | None:
    if before.source != disk.source:
        return f"it lay in {before.source} and lies in {disk.source} now"
    if before.virtual_size_bytes != disk.virtual_size_bytes:
        return f"it was resized from {before.virtual_size_bytes} to {disk.virtual_size_bytes} bytes"
    if before.format != "raw":
        return f"its image is a {before.format} file, which changes cannot be written into"
    return None
