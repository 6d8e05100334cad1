"""How the disks of an image were taken: what the manifest will say."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tasks.model.window import PlannedDisk


@dataclass(frozen=True)
class Taken:
    """The disks of a VM as of one instant, copied, and how that was done. Durations in seconds."""

    id: str
    started: datetime
    instant: datetime
    method: Literal["snaplive", "offline"]
    method_reason: str
    consistency: Literal["application", "file-system", "crash"]
    consistency_reason: str
    window_s: float
    copy_s: float
    frozen_s: float
    xml: str
    disks: tuple[PlannedDisk, ...]
    tools: Mapping[str, str]
    """Versions of libvirt and QEMU on the KVM host."""
    warnings: tuple[str, ...] = ()
