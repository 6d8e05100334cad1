"""libvirt's backup job of a VM: whether it can be had, its end, and the checkpoints that increments begin at."""

import logging
import time
import xml.etree.ElementTree as ET
from collections.abc import Collection, Sequence
from typing import Any

import libvirt

from tasks.drivers import host_files
from tasks.drivers.host_shell import HostShell
from tasks.drivers.libvirt_host import Host, HostDomain
from tasks.errors import DomainBusy, HypervisorError
from tasks.model.domain_xml import Domain
from tasks.model.increment import CHECKPOINT

SCRATCH_MARK = ".gbs-scratch-"
END_DEADLINE_S = 60
_NO_JOB = libvirt.VIR_ERR_NO_DOMAIN_BACKUP
_STOPPED = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)
log = logging.getLogger(__name__)


def why_unsupported(host: Host, domain: HostDomain, description: Domain) -> str | None:
    """Why the backup API cannot be had for a VM, or None: what libvirt declares, and a harmless call that shows it."""

    def declared() -> str:
        ask = host.connection.getDomainCapabilities
        return str(ask(None, description.arch, description.machine, description.type, 0))

    try:
        features = ET.fromstring(host.call("ask for capabilities", domain.name, declared))  # noqa: S314 - libvirt's own
        backup = features.find("features/backup")
        if backup is None or backup.get("supported") != "yes":
            return f"libvirt of {host.name} does not offer it for this kind of VM"
        job_xml(domain)
        checkpoints(domain)
    except HypervisorError as exc:
        return f"libvirt of {host.name} refuses it: {exc.args[-1]}"
    return None


def job_xml(domain: HostDomain) -> str | None:
    """The backup job of a VM as libvirt shows it, or None when there is none."""

    def ask(handle: Any) -> str | None:
        try:
            return str(handle.backupGetXMLDesc(0))
        except libvirt.libvirtError as exc:
            if exc.get_error_code() in (_NO_JOB, libvirt.VIR_ERR_OPERATION_INVALID):
                return None  # no job, or the VM does not run
            raise

    return domain.call("ask for a backup job", ask)


def end(shell: HostShell, domain: HostDomain, scratch: Sequence[str]) -> None:
    """End the VM's backup job, if it runs, and remove these scratch files and the job's; the VM goes on if it stopped.

    A pull job ends no other way, also when all went well. DomainBusy when the job is somebody else's, which its scratch
    files tell by their names.
    """
    running = job_xml(domain)
    used = _scratch_of(running) if running is not None else []
    if running is not None:
        if not used or not all(SCRATCH_MARK in path for path in used):
            raise DomainBusy(domain.name, "a backup", "a backup job that is not ours works on the VM")
        domain.call("end the backup job", lambda handle: handle.abortJob(), deadline_s=END_DEADLINE_S)
        ends_at = time.monotonic() + END_DEADLINE_S
        while job_xml(domain) is not None:
            if time.monotonic() > ends_at:
                raise DomainBusy(domain.name, "a backup", f"its job did not end within {END_DEADLINE_S} s")
            time.sleep(0.05)
    if domain.state() == _STOPPED:
        # The scratch file's file system was full; what filled it is gone now.
        domain.call("resume", lambda handle: handle.resume())
    if paths := {*scratch, *used}:
        host_files.remove(shell, sorted(paths))


def _scratch_of(xml: str) -> list[str]:
    return [element.get("file", "") for element in ET.fromstring(xml).iter("scratch")]  # noqa: S314 - libvirt's own


def checkpoints(domain: HostDomain) -> dict[str, Any]:
    """The checkpoints that libvirt knows of a VM, by name."""
    found = domain.call("list checkpoints", lambda handle: handle.listAllCheckpoints(0))
    return {checkpoint.getName(): checkpoint for checkpoint in found}


def delete_checkpoints(domain: HostDomain, keep: Collection[str]) -> list[str]:
    """Delete our checkpoints but those to keep; what could only be forgotten, because its bitmap is damaged."""
    doomed = {
        name: checkpoint
        for name, checkpoint in checkpoints(domain).items()
        if name.startswith(CHECKPOINT) and name not in keep
    }
    return [name for name, checkpoint in doomed.items() if not _delete(domain, name, checkpoint)]


def _delete(domain: HostDomain, name: str, checkpoint: Any) -> bool:
    """Delete a checkpoint with its bitmaps; False when it could only be forgotten."""
    try:
        domain.call(f"delete checkpoint {name}", lambda _: checkpoint.delete(0))
    except HypervisorError as exc:
        log.warning("VM %s: checkpoint %s is only forgotten: %s", domain.name, name, exc.args[-1])
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
        domain.call(f"forget checkpoint {name}", lambda _: checkpoint.delete(flags))
        return False
    return True
