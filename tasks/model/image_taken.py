"""How the disks of an image were taken: what the manifest will say."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tasks.model.manifest import ImageMethod


@dataclass(frozen=True)
class TakenDisk:
    """One disk: where it lay on the KVM host, in which format, and how it was copied. Its copy is raw."""

    target: str
    source: str
    source_format: Literal["qcow2", "raw"]
    virtual_size_bytes: int
    source_kind: Literal["file", "block"] = "file"
    volume: str = ""
    """`POOL/VOLUME` where the definition names it so."""
    increment: str = ""
    """Why its changes were enough, or why all of it was copied."""
    options: tuple[str, ...] = ()
    """What its qcow2 file was created with."""

    @property
    def file(self) -> str:
        """Its file inside the image."""
        return f"{self.target}.raw"


@dataclass(frozen=True)
class Taken:
    """The disks of a VM as of one instant, copied, and how that was done. Durations in seconds."""

    id: str
    started: datetime
    instant: datetime
    method: ImageMethod
    method_reason: str
    consistency: Literal["application", "file-system", "crash"]
    consistency_reason: str
    window_s: float
    copy_s: float
    frozen_s: float
    disks: tuple[TakenDisk, ...]
    tools: Mapping[str, str]
    """Versions of libvirt and QEMU on the KVM host."""
    warnings: tuple[str, ...] = ()
    parent: str | None = None
    """The image whose clone this one began as."""
    checkpoint: str | None = None
    """libvirt's, which the next increment begins at."""
    bytes_moved: int = 0
