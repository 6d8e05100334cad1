"""A VM is watched while its disks are copied: overlays and scratch files grow, and their room must not run out."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import libvirt

from tasks.drivers import host_files
from tasks.drivers.host_shell import HostShell, run_each
from tasks.drivers.libvirt_host import Host
from tasks.errors import GbsError, HypervisorError
from tasks.model.names import human_bytes

MIN_FREE_BYTES = 256 << 20
"""Less room than this, and the copy is given up: what is committed then needs some of it."""
EVERY_S = 10.0
_DEADLINE_S = 60
_IO_ERROR = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)
_log = logging.getLogger(__name__)


@dataclass
class SpaceWatch:
    """Called as often as you like while a copy runs, it looks every `every_s` and raises when the copy must end.

    HypervisorError then says why: the room in one of `folders` of the host runs out, or the VM has stopped for want of
    it. Such a VM goes on once its window is closed; no write of the guest is lost.
    """

    host: Host
    shell: HostShell
    vm: str
    uuid: str
    folders: Sequence[str]
    min_free_bytes: int = MIN_FREE_BYTES
    every_s: float = EVERY_S
    ends_at: float | None = None
    """By time.monotonic(): later, the copy has lasted too long."""
    _looked: float = field(default_factory=time.monotonic)

    def __call__(self) -> None:
        if time.monotonic() - self._looked < self.every_s:
            return
        try:
            reason = self._reason_to_end()
        except GbsError as exc:
            # A host that cannot be asked now is no reason to throw the copy away: its own end will tell.
            _log.warning("VM %s could not be looked at: %s", self.vm, exc)
            reason = None
        self._looked = time.monotonic()
        if reason is not None:
            raise HypervisorError(self.vm, "a live copy", reason)

    def _reason_to_end(self) -> str | None:
        if self.ends_at is not None and time.monotonic() > self.ends_at:
            return "it lasts longer than the policy's max_window_s allows a VM to run on overlays"
        domain = self.host.find_uuid(self.uuid)
        if domain is None:
            return "the VM is not defined any more"
        if domain.state() == _IO_ERROR:
            return "the VM was stopped by an I/O error: a file system of its host may be full"
        folders = sorted(set(self.folders))
        answers = run_each(
            self.shell, [host_files.free_space_argv(folder) for folder in folders], deadline_s=_DEADLINE_S
        )
        for folder, answer in zip(folders, answers, strict=True):
            left = host_files.parse_free_space(answer, folder)
            if left.size_bytes < self.min_free_bytes:
                room = human_bytes(left.size_bytes)
                return f"only {room} are left on {self.host.name}:{folder} for its overlays or scratch files"
        return None
