"""A VM that runs from the store, on its KVM host: started on overlays, moved by block pull, or removed again.

The overlay becomes the disk. QEMU fills it from the export while the VM runs; what was pulled stays pulled, so a move
that was cut off goes on where it was, whoever died.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath

import libvirt

from tasks.drivers import qemu_img, recovery_files
from tasks.drivers.host_shell import HostShell
from tasks.drivers.libvirt_host import Host, HostDomain
from tasks.errors import CommandFailed, HypervisorError, IntegrityError, LeftBehind, RecoveryRefused
from tasks.model.domain_recovery import run_of
from tasks.model.domain_xml import names_file, parse_domain
from tasks.model.instant import InstantDisk, InstantVm, notable
from tasks.model.instant_xml import off_the_store, on_the_store, still_on_the_store
from tasks.model.window import Layer

log = logging.getLogger(__name__)
OnProgress = Callable[[int, int | None], None]
QUICK_S = 60
MOVE_DEADLINE_S = 24 * 3600
RESUME_TRIES, RESUME_LOOK_S = 10, 0.5
# -u: the exports are proven by themselves. The overlay alone is opened, without its backing file. unsafe: QEMU would
# flush it time and again, which takes most of a second; the first flush of the guest's takes it all to the disk.
_OVERLAY = """
umask 077
test ! -e "$1" && qemu-img create -q -u -f qcow2 -b "$2" -F raw -- "$1" "$3" || exit 1
graph=$4
shift 4
[ $# -eq 0 ] || ! command -v qemu-io >/dev/null || exec qemu-io -t unsafe "$@" "$graph" >/dev/null
"""
_POLL_FIRST_S, _POLL_LAST_S = 0.05, 1.0
_IO_ERROR = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)
_GONE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


def require_room(shell: HostShell, record: InstantVm, has_bytes: dict[str, int]) -> None:
    """RecoveryRefused unless the overlays, which have so many bytes, can grow to whole disks; per file system."""
    needed: dict[str, int] = {}
    free: dict[str, int] = {}
    for disk in record.disks:
        folder = str(PurePosixPath(disk.overlay).parent)
        output = shell.run(["df", "-B1", "--output=avail,target", "--", folder], deadline_s=QUICK_S).stdout
        available, mountpoint = output.strip().splitlines()[-1].split(maxsplit=1)
        free[mountpoint] = int(available)
        grows = max(0, disk.moved_bytes_at_most - has_bytes[disk.target])
        needed[mountpoint] = needed.get(mountpoint, 0) + grows
    for mountpoint, needed_bytes in needed.items():
        if free[mountpoint] < needed_bytes:
            reason = (
                f"{mountpoint} on {record.kvm_host} has {free[mountpoint]} bytes free, its disks need {needed_bytes}"
            )
            raise RecoveryRefused(f"VM {record.vm}", reason, "make room, or choose another KVM host")


def make_overlays(shell: HostShell, record: InstantVm, zeroes: Mapping[str, Sequence[tuple[int, int]]]) -> InstantVm:
    """Make the overlays, which the exports need not be there for; the record with which files they are.

    What is there is never overwritten.

    `zeroes` are where each disk is zero (offset, length): noted in the overlay they are never read from the store, and
    a pull, which asks for half a MiB at a time, does not take as long as the disk is large.
    """
    for disk in record.disks:
        noted = [f"write -z {offset} {length}" for offset, length in notable(zeroes.get(disk.target, ()))]
        graph = qemu_img.graph([Layer(path=disk.overlay, format="qcow2")])
        words = [disk.overlay, _backing(record, disk), str(disk.size_bytes), graph]
        argv = ["sh", "-c", _OVERLAY, "sh", *words, *(word for command in noted for word in ("-c", command))]
        shell.run(argv, deadline_s=QUICK_S, name=f"make {disk.overlay}")
    made = recovery_files.identify(shell, [disk.overlay for disk in record.disks])
    disks = (disk.model_copy(update={"made": file}) for disk, file in zip(record.disks, made, strict=True))
    return record.model_copy(update={"disks": tuple(disks)})


def start(host: Host, record: InstantVm) -> None:
    """Define the VM on its overlays and start it; RecoveryRefused when one of its name or UUID has come meanwhile."""
    if host.find(record.vm) is not None or host.find_uuid(record.uuid) is not None:
        reason = f"a VM of its name or UUID has come to {host.name} meanwhile"
        raise RecoveryRefused(f"VM {record.vm}", reason, "look at it: virsh list --all --uuid --name")
    host.define(on_the_store(record), record.vm)
    start_again(host, record)


def start_again(host: Host, record: InstantVm) -> None:
    """Start the VM, which is defined, on its overlays as they are; the exports are served."""
    host.domain(record.uuid).call("start", lambda handle: handle.create())


def resume(host: Host, record: InstantVm) -> bool:
    """Let the VM go on if an I/O error paused it; whether it did. QEMU repeats what failed, the guest sees no error.

    The exports are served. HypervisorError when it pauses again and again. One resume is not enough: with QEMU 7.2, the
    first read after the export is back still fails, and only makes QEMU connect again.
    """
    domain = _marked(host, record)
    if domain is None or domain.state() != _IO_ERROR:
        return False
    for _ in range(RESUME_TRIES):
        domain.call("resume", lambda handle: handle.resume())
        time.sleep(RESUME_LOOK_S)
        if domain.state() != _IO_ERROR:
            return True
    raise HypervisorError(record.vm, "resume", _why(domain))


def is_active(host: Host, record: InstantVm) -> bool | None:
    """Whether the VM runs (paused counts); None when the host does not know it, LeftBehind for another."""
    domain = _marked(host, record)
    return None if domain is None else domain.call("look", lambda handle: bool(handle.isActive()))


def move(host: Host, shell: HostShell, record: InstantVm, on_progress: OnProgress | None = None) -> None:
    """Bring all that the disks still have in the store to the host, while the VM runs or is off, and prove it.

    A pull that runs already is adopted. HypervisorError when one ends early: what was pulled stays, call again.
    """
    domain = _ours(host, record)
    if domain is None:
        raise HypervisorError(record.vm, "the move to its host", f"{host.name} does not know it any more")
    left = still_on_the_store(domain.xml(), record)
    require_room(shell, record, {disk.target: _info(shell, disk).allocated_bytes for disk in record.disks})
    if is_active(host, record):
        for disk in record.disks:
            if disk.target in left:
                _pull(domain, record, disk, on_progress)
    else:
        _pull_offline(shell, record)
    # What an operator changed in it meanwhile stays.
    host.define(off_the_store(domain.inactive_xml(secrets=True) or record.xml, record), record.vm)
    _require_independent(shell, domain, record)


def _pull(domain: HostDomain, record: InstantVm, disk: InstantDisk, on_progress: OnProgress | None) -> None:
    target = disk.target
    if not _job(domain, target):
        domain.call(f"pull of disk {target}", lambda handle: handle.blockPull(target, 0, 0))
    ends_at, pause_s = time.monotonic() + MOVE_DEADLINE_S, _POLL_FIRST_S
    while job := _job(domain, target):
        if on_progress is not None:
            on_progress(job.get("cur", 0), job.get("end") or None)
        if time.monotonic() > ends_at:
            raise HypervisorError(record.vm, f"the move of disk {target}", f"not done in {MOVE_DEADLINE_S} s")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _POLL_LAST_S)
    if target in still_on_the_store(domain.xml(), record):
        todo = f"then: gbs instant keep {record.vm}"
        raise HypervisorError(record.vm, f"the move of disk {target}", f"{_why(domain)}; {todo}")


def _job(domain: HostDomain, target: str) -> dict[str, int]:
    found = domain.call("ask for block jobs", lambda handle: handle.blockJobInfo(target, 0))
    return dict(found) if found else {}


def _why(domain: HostDomain) -> str:
    """Why a pull ended early, as far as libvirt knows."""
    errors = domain.call("ask for disk errors", lambda handle: handle.diskErrors() or {})
    if libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE in errors.values():
        return "the host has no room left, make some"
    return "the export, or the host's file system, does not do what it should"


def _pull_offline(shell: HostShell, record: InstantVm) -> None:
    """As a pull, for a VM that is off. QEMU's lock keeps it from starting on the disk meanwhile."""
    for disk in record.disks:
        if _info(shell, disk).backing is not None:
            argv = ["qemu-img", "rebase", "-q", "-f", "qcow2", "-b", "", "--", disk.overlay]
            shell.run(argv, deadline_s=MOVE_DEADLINE_S, name=f"move of disk {disk.target}")


def _info(shell: HostShell, disk: InstantDisk) -> qemu_img.ImageInfo:
    return qemu_img.info(shell, disk.overlay, "qcow2", shared=True)


def _require_independent(shell: HostShell, domain: HostDomain, record: InstantVm) -> None:
    """Neither libvirt's definitions nor the disks' own headers name anything but the disks."""
    for text in (domain.xml(), domain.inactive_xml() or ""):
        if text and (left := still_on_the_store(text, record)):
            raise HypervisorError(record.vm, "the move to its host", f"disk {left[0]} is still read from the store")
    for disk in record.disks:
        qemu_img.require_complete(_info(shell, disk))


def remove(host: Host, shell: HostShell, record: InstantVm) -> None:
    """Destroy and undefine the VM, remove its overlays and parts; a VM or a file that came in their place stays.

    LeftBehind when the VM has other disks by now, or another VM has its overlays.
    """
    if is_known(host, record):
        domain = _ours(host, record)
        if domain is not None:
            if domain.call("look", lambda handle: bool(handle.isActive())):
                domain.call("stop", lambda handle: handle.destroy())
            domain.call("undefine", lambda handle: handle.undefineFlags(_GONE))
    elif (other := host.find_uuid(record.uuid)) is not None:
        log.warning("VM %s on %s has its UUID, and is not what was started there: left alone", other.name, host.name)
    found = recovery_files.identify(shell, [disk.overlay for disk in record.disks])
    ours = []
    for disk, there in zip(record.disks, found, strict=True):
        if there is not None and (disk.file.is_it(there) if disk.made else _is_unnoted(shell, record, disk)):
            ours.append(disk)
        elif there is not None:
            log.warning("%s on %s is not the overlay that was made there: left alone", disk.overlay, host.name)
    _require_unused(host, ours)
    for disk in ours:
        shell.run(["rm", "-f", "--", disk.overlay], deadline_s=QUICK_S)
    recovery_files.remove(host, shell, record.put)


def _is_unnoted(shell: HostShell, record: InstantVm, disk: InstantDisk) -> bool:
    """Whether a file can only be an overlay whose run was killed before it was noted: it is on our export."""
    try:
        return _info(shell, disk).backing == _backing(record, disk)
    except (CommandFailed, IntegrityError):
        return False


def _require_unused(host: Host, disks: Sequence[InstantDisk]) -> None:
    for other in host.domains() if disks else ():
        texts = [other.xml(), *filter(None, [other.inactive_xml()])]
        for disk in disks:
            if any(names_file(text, disk.overlay, "") for text in texts):
                undo = f"remove it from that VM's definition (virsh edit {other.uuid}), then again"
                raise LeftBehind(f"{disk.overlay} on {host.name}", f"VM {other.name} has it", undo)


def _backing(record: InstantVm, disk: InstantDisk) -> str:
    return f"nbd+unix:///?socket={record.socket(disk.target)}"


def forget_sockets(shell: HostShell, record: InstantVm) -> None:
    """Remove the folder of the exports' sockets; they have ended."""
    shell.run(["rm", "-rf", "--one-file-system", "--", record.folder], deadline_s=QUICK_S)


def is_known(host: Host, record: InstantVm) -> bool:
    """Whether the host has the VM that the record's run defined."""
    domain = host.find_uuid(record.uuid)
    return domain is not None and _bears_mark(domain, record)


def _bears_mark(domain: HostDomain, record: InstantVm) -> bool:
    return bool(record.run) and run_of(domain.inactive_xml() or domain.xml()) == record.run


def _marked(host: Host, record: InstantVm) -> HostDomain | None:
    """The record's VM; None when there is none of its UUID, LeftBehind when that is another."""
    domain = host.find_uuid(record.uuid)
    if domain is not None and not _bears_mark(domain, record):
        same = f"if it is, put back <metadata> of the xml in instant/{record.uuid}.json (virsh edit {record.uuid})"
        undo = f"{same}; if it is another, which is left alone: gbs instant abandon {record.vm}"
        raise LeftBehind(f"VM {record.vm} on {host.name}", "it is not marked as the VM that was started there", undo)
    return domain


def _ours(host: Host, record: InstantVm) -> HostDomain | None:
    """As `_marked`, proven to be on the record's overlays."""
    domain = _marked(host, record)
    if domain is None:
        return None
    found = {disk.target: disk.source for disk in parse_domain(domain.xml()).disks}
    if any(found.get(disk.target) != disk.overlay for disk in record.disks):
        undo = f"look at virsh domblklist {record.uuid} on {host.name}; if it is another VM, remove GBS's record of it"
        raise LeftBehind(f"VM {record.vm} on {host.name}", "its disks are not those that it was started with", undo)
    return domain
