"""An open window is watched while its disks are copied: it has to end before the overlays' room does."""

import logging
import time
from dataclasses import dataclass, field

import libvirt

from tasks.drivers import host_files
from tasks.drivers.host_shell import HostShell, run_each
from tasks.drivers.libvirt_host import Host
from tasks.drivers.snaplive import Window
from tasks.errors import GbsError, HypervisorError
from tasks.model.names import human_bytes

MIN_FREE_BYTES = 256 << 20
"""Less room than this for overlays, and the copy is given up: what is committed then needs some of it."""
EVERY_S = 10.0
_DEADLINE_S = 60
_IO_ERROR = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)
_log = logging.getLogger(__name__)


@dataclass
class WindowWatch:
    """Called as often as you like while a window is open, it looks every `every_s` and raises when the window must end.

    HypervisorError then says why: the overlays' room runs out, or the VM has stopped for want of it. Such a VM goes on
    by itself once its window is closed; no write of the guest is lost.
    """

    host: Host
    shell: HostShell
    window: Window
    min_free_bytes: int = MIN_FREE_BYTES
    every_s: float = EVERY_S
    _looked: float = field(default_factory=time.monotonic)

    def __call__(self) -> None:
        if time.monotonic() - self._looked < self.every_s:
            return
        try:
            reason = self._reason_to_end()
        except GbsError as exc:
            # A host that cannot be asked now is no reason to throw the copy away: its own end will tell.
            _log.warning("VM %s: its window could not be looked at: %s", self.window.plan.vm, exc)
            reason = None
        self._looked = time.monotonic()
        if reason is not None:
            raise HypervisorError(self.window.plan.vm, "a live copy", reason)

    def _reason_to_end(self) -> str | None:
        plan = self.window.plan
        domain = self.host.find_uuid(plan.uuid)
        if domain is None:
            return "the VM is not defined any more"
        if domain.state() == _IO_ERROR:
            return "the VM was stopped by an I/O error: the file system of its overlays may be full"
        folders = sorted({disk.base.rpartition("/")[0] or "/" for disk in plan.disks})
        answers = run_each(
            self.shell, [host_files.free_space_argv(folder) for folder in folders], deadline_s=_DEADLINE_S
        )
        for folder, answer in zip(folders, answers, strict=True):
            left = host_files.parse_free_space(answer, folder)
            if left.size_bytes < self.min_free_bytes:
                return f"only {human_bytes(left.size_bytes)} are left on {self.host.name}:{folder} for overlays"
        return None
