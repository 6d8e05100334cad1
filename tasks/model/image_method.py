"""By which method an image is taken: what the VM's state and its host allow, or what the operator asks for."""

from dataclasses import dataclass
from typing import Literal

from tasks.errors import HypervisorError
from tasks.model.manifest import ImageMethod
from tasks.model.window_decision import Power

WantedMethod = Literal["auto", "backup-api", "snaplive", "offline"]


@dataclass(frozen=True)
class Choice:
    """A method and why it was chosen, for the manifest."""

    method: ImageMethod
    reason: str


@dataclass(frozen=True)
class Wishes:
    """How an image is to be taken: what policy and host allow. Durations in seconds."""

    full: bool = False
    """Copy all of it, also where its changes would do."""
    freeze_deadline_s: int = 20
    shutdown_deadline_s: float = 300
    force_shutdown: bool = False
    transfer_deadline_s: float = 6 * 3600
    max_window_s: float = 4 * 3600
    """How long a VM may run on overlays; longer, and the copy is given up."""
    bytes_per_s: int | None = None
    """At most so much travels; None for no limit."""
    expected_bytes_per_s: float | None = None
    """How fast the last copy went; None when that is not known."""
    min_free_bytes: int = 1 << 30
    """For each disk, beside it: overlays and scratch files must never fill a file system."""
    image_folder: str = "/var/lib/libvirt/images"
    """Where overlays and scratch files of block devices go."""


def choose_method(vm: str, power: Power, wanted: WantedMethod, why_no_backup_api: str | None) -> Choice:
    """The method for a VM that runs (ON) or is shut off (OFF); HypervisorError when the wanted one cannot be had.

    `why_no_backup_api` is what a probe of the host found, None when the backup API can be used.
    """
    if power is Power.OFF:
        if wanted in ("backup-api", "snaplive"):
            raise HypervisorError(vm, f"an image by {wanted}", "the VM is shut off; start it or take it offline")
        return Choice("offline", "the VM is shut off")
    if power is not Power.ON:
        raise HypervisorError(vm, "taking its image", f"it is {power.value}")
    if wanted == "offline":
        return Choice("offline", "it was asked for: the VM is shut down for the copy and started again")
    if wanted == "snaplive":
        return Choice("snaplive", "it was asked for")
    if why_no_backup_api is None:
        asked = "it was asked for, and" if wanted == "backup-api" else "the VM runs, and"
        return Choice("backup-api", f"{asked} a trial showed that its host has it")
    if wanted == "backup-api":
        raise HypervisorError(vm, "an image by backup-api", why_no_backup_api)
    return Choice("snaplive", f"the VM runs, and the backup API cannot be used: {why_no_backup_api}")
