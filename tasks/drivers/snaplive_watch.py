"""A look at an open window while its disks are copied: whether it has to end before the copy does."""

import libvirt

from tasks.drivers import host_files
from tasks.drivers.host_shell import HostShell, run_each
from tasks.drivers.libvirt_host import Host
from tasks.drivers.snaplive import Window
from tasks.model.names import human_bytes

_DEADLINE_S = 60
_IO_ERROR = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)


def reason_to_end(host: Host, shell: HostShell, window: Window, *, min_free_bytes: int) -> str | None:
    """Why the window should be closed now, or None: the overlays' room runs out, or the VM has stopped for want of it.

    A VM that stopped so goes on by itself once its window is closed; no write of the guest is lost.
    """
    plan = window.plan
    domain = host.find_uuid(plan.uuid)
    if domain is None:
        return f"VM {plan.vm} is not defined any more"
    if domain.state() == _IO_ERROR:
        return f"VM {plan.vm} was stopped by an I/O error: the file system of its overlays may be full"
    folders = sorted({disk.base.rpartition("/")[0] or "/" for disk in plan.disks})
    answers = run_each(shell, [host_files.free_space_argv(folder) for folder in folders], deadline_s=_DEADLINE_S)
    for folder, answer in zip(folders, answers, strict=True):
        left = host_files.parse_free_space(answer, folder)
        if left.size_bytes < min_free_bytes:
            return f"only {human_bytes(left.size_bytes)} are left on {host.name}:{folder} for overlays of VM {plan.vm}"
    return None
