"""Put a VM on a KVM host step by step, and take away again what an interrupted run left, by its record.

The record is written before each step. A file is under way with the run's id in its name; which file it is is noted
before it gets its own name, so that what stands there later is known to be ours or somebody else's. The VM bears the
run's id.
"""

import contextlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import libvirt

from tasks.drivers import lock, recovery_files
from tasks.drivers.host_files import DEADLINE_S
from tasks.drivers.host_shell import HostShell
from tasks.drivers.libvirt_host import Host, HostDomain
from tasks.drivers.store import Store, listed_model, read_model, write_model
from tasks.errors import CommandFailed, IntegrityError, RecoveryRefused
from tasks.model.domain_recovery import run_of
from tasks.model.recovery_plan import ISOLATED, Place
from tasks.model.recovery_record import PutRecord, Settlement, isolated_network, record_name, settlement

COPY_DEADLINE_S = 6 * 3600
REFRESH_DEADLINE_S = 600
"""libvirt opens every volume of a pool."""
# Of a file that the host sees itself: a second name or a reflink, and nothing is moved (0), else a plain copy (4).
_NEARBY = """
[ "$(stat -c '%d %i %s' -- "$1" 2>/dev/null)" = "$3" ] && [ "$(cat /proc/sys/kernel/random/boot_id)" = "$4" ] || exit 3
rm -f -- "$2"
ln -T -- "$1" "$2" 2>/dev/null || cp --reflink=always -T -- "$1" "$2" 2>/dev/null && exit 0
cp --sparse=always -T -- "$1" "$2" && exit 4
"""
_SHARED, _COPIED, _UNSEEN = 0, 4, 3
# link(2) never replaces; a folder has only mv, which is asked not to.
_NAME = (
    'if [ -d "$1" ]; then [ ! -e "$2" ] && exec mv -T -- "$1" "$2"; else ln -T -- "$1" "$2" && exec rm -f -- "$1"; fi'
)
_UNPACK = 'umask 022 && rm -rf -- "$2" && mkdir -- "$2" && exec tar -C "$2" --strip-components=1 -xf "$1"'
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


class Record(Protocol):
    """Where the record of what is put on a host is kept."""

    @property
    def path(self) -> Path:
        """The file that it is in."""

    def read(self) -> PutRecord | None:
        """It, or None when there is none."""

    def write(self, record: PutRecord) -> PutRecord:
        """Keep it; what it announces is done only after that."""


class Ledger:
    """The record of one recovery, in a file. The caller holds the VM's lock."""

    def __init__(self, store: Store, kvm_host: str, uuid: str) -> None:
        self.path = _records(store) / record_name(kvm_host, uuid)

    def read(self) -> PutRecord | None:
        """The record of a recovery that has not ended; IntegrityError when it cannot be read."""
        return read_model(self.path, PutRecord)

    def write(self, record: PutRecord) -> PutRecord:
        """Keep it; what it announces is done only after that."""
        write_model(self.path, record)
        return record

    def end(self) -> None:
        """The recovery is done, or undone."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are under way
            for folder in self.path.parents[:2]:
                folder.rmdir()


def _records(store: Store) -> Path:
    """Beside the working copies, none of whose folders begins with a dot."""
    return store.recovery("any").with_name(".put")


def paths(store: Store) -> list[Path]:
    """The records' files, those that cannot be read, too."""
    return sorted(_records(store).glob("*/*.json"))


def unfinished(store: Store) -> list[PutRecord]:
    """The recoveries and drills that have not ended, those that run now, too."""
    found = (listed_model(path, PutRecord) for path in paths(store))
    return [record for record in found if record is not None]


def interrupted(store: Store) -> list[PutRecord]:
    """The recoveries that did not end and that no run works on now; drills are taken away by themselves."""
    return [each for each in unfinished(store) if not each.is_drill and not lock.is_held(store.lock("vm", each.uuid))]


def place_file(
    shell: HostShell,
    ledger: Record,
    place: Place,
    source: Path,
    sha256: str,
    send: Callable[[Path, str], int],
    *,
    boot_id: str | None = None,
) -> int:
    """Bring a file of the image to its place on the host; the bytes that were sent. IntegrityError if it is not whole.

    `send(source, path)` copies it there. With this machine's `boot_id` it is not asked where the host sees the source
    itself: it then gets a second name where it can, so only for a source that nobody needs afterwards.
    """
    record = _required(ledger)
    partial, sent = record.partial(place.path), 0
    if _is_named(shell, record, place):
        shell.run(["rm", "-rf", "--", partial], deadline_s=DEADLINE_S)
        return 0
    if place.format == "tar":
        # libvirt makes it when the first VM with a TPM starts.
        shell.run(["mkdir", "-p", "-m", "711", "--", str(PurePosixPath(place.path).parent)], deadline_s=DEADLINE_S)
        sent = send(source, f"{partial}.tar")
        _require_whole(shell, f"{partial}.tar", sha256)
        argv = ["sh", "-c", _UNPACK, "sh", f"{partial}.tar", partial]
        shell.run(argv, deadline_s=DEADLINE_S, name=f"unpack {place.role}")
        shell.run(["rm", "-f", "--", f"{partial}.tar"], deadline_s=DEADLINE_S)
    else:
        status = _nearby(shell, source, partial, boot_id) if boot_id is not None else _UNSEEN
        if status == _UNSEEN:
            sent = send(source, partial)
        if status != _SHARED:
            _require_whole(shell, partial, sha256)
    (found,) = recovery_files.identify(shell, [partial])
    if found is None:
        raise IntegrityError(partial, "the file that was sent", "nothing")
    ledger.write(record.noting(place.role, found))
    shell.run(["sh", "-c", _NAME, "sh", partial, place.path], deadline_s=DEADLINE_S, name=f"name {place.path}")
    return sent


def _is_named(shell: HostShell, record: PutRecord, place: Place) -> bool:
    """Whether it was done already, when it is tried again after the connection broke."""
    return bool(recovery_files.own(shell, [file for file in record.files if file.role == place.role]))


def _nearby(shell: HostShell, source: Path, partial: str, boot_id: str) -> int:
    """How the host got a file that it sees itself, by the status of _NEARBY; CommandFailed when it cannot be copied."""
    stat = source.stat()
    argv = ["sh", "-c", _NEARBY, "sh", str(source), partial, f"{stat.st_dev} {stat.st_ino} {stat.st_size}", boot_id]
    done = shell.run(argv, deadline_s=COPY_DEADLINE_S, check=False, name=f"link {source.name}")
    if done.status not in (_SHARED, _COPIED, _UNSEEN):
        raise CommandFailed(f"cp of {source}", done.status, done.stderr.strip())
    return done.status


def _require_whole(shell: HostShell, path: str, sha256: str) -> None:
    found = shell.run(["sha256sum", "--", path], deadline_s=COPY_DEADLINE_S).stdout.lstrip("\\")[:64]
    if found != sha256:
        raise IntegrityError(path, sha256, found)


def _required(ledger: Record) -> PutRecord:
    record = ledger.read()
    if record is None:
        raise IntegrityError(str(ledger.path), "the record of this recovery", "nothing")
    return record


def isolate(host: Host, ledger: Ledger) -> None:
    """The network that leads nowhere, made where it is missing, and active."""
    run = _required(ledger).run

    def make() -> None:
        connection = host.connection
        found = [network for network in connection.listAllNetworks(0) if network.name() == ISOLATED]
        network = found[0] if found else connection.networkDefineXML(isolated_network(run))
        if not network.isActive():
            network.create()

    host.call(f"make network {ISOLATED}", "", make)


def define_and_start(host: Host, ledger: Ledger, xml: str, pools: Sequence[str], *, autostart: bool) -> None:
    """Define the VM, which bears the run's id, and start it; pools that got volumes look for them first.

    RecoveryRefused when another VM of its UUID has come there meanwhile.
    """
    record = _required(ledger)

    def refresh() -> None:
        for name in pools:
            host.connection.storagePoolLookupByName(name).refresh(0)

    host.call("refresh the pools of", record.name, refresh, deadline_s=REFRESH_DEADLINE_S)
    if made_by(host, record) is None:
        if host.find_uuid(record.uuid) is not None:
            reason = f"a VM of its UUID has come to {record.kvm_host} meanwhile"
            raise RecoveryRefused(f"VM {record.name}", reason, "look at it: virsh list --all --uuid --name")
        host.define(xml, record.name)
    start(host, ledger, autostart=autostart)


def start(host: Host, ledger: Ledger, *, autostart: bool = False) -> None:
    """Start the recovery's VM unless it runs; that is noted before, as somebody may use it from then on.

    With `autostart` its host starts it from then on, too.
    """
    record = _required(ledger)
    ledger.write(record.model_copy(update={"started": True}))
    if autostart:
        host.domain(record.uuid).call("set autostart", lambda handle: handle.setAutostart(1))
    host.domain(record.uuid).call("start", lambda handle: handle.isActive() or handle.create())


def made_by(host: Host, record: PutRecord) -> HostDomain | None:
    """The VM that this recovery made, if it is there: a VM of the same UUID that does not bear its id is another."""
    domain = host.find_uuid(record.uuid)
    text = (domain.inactive_xml() or domain.xml()) if domain is not None else ""
    return domain if domain is not None and run_of(text) == record.run else None


def settlement_of(host: Host, shell: HostShell, earlier: PutRecord, wanted: PutRecord) -> Settlement:
    """What becomes of an earlier run's VM and files, now that `wanted` is asked for. Nothing is changed."""
    domain = made_by(host, earlier)
    runs = domain is not None and domain.call("ask whether it runs", lambda handle: bool(handle.isActive()))
    left = [file.path for file in recovery_files.own(shell, earlier.files)]
    return settlement(earlier, wanted, there=domain is not None, runs=runs, left=left)


def clear(host: Host, shell: HostShell, ledger: Ledger) -> list[str]:
    """Take away all that the record's recovery put there; what it was. Nothing else is touched.

    For the run itself that fails, for a drill, and for what was never started: see `settlement`.
    What is left alone see `recovery_files.remove`. LeftBehind when something cannot be removed.
    """
    record = ledger.read()
    if record is None:
        return []
    removed = []
    if (domain := made_by(host, record)) is not None:
        domain.call("stop", lambda handle: handle.destroy() if handle.isActive() else 0)
        domain.call("undefine", lambda handle: handle.undefineFlags(_UNDEFINE))
        removed.append(f"VM {record.name}")
    removed += recovery_files.remove(host, shell, record)
    if record.isolated and _remove_network(host):
        removed.append(f"network {ISOLATED}")
    if record.working_copy is not None:
        shutil.rmtree(record.working_copy, ignore_errors=True)
    ledger.end()
    return removed


def _remove_network(host: Host) -> bool:
    """Remove the isolated network if it is one of ours and no VM is defined on it."""

    def remove() -> bool:
        connection: Any = host.connection
        for network in connection.listAllNetworks(0):
            if network.name() != ISOLATED or "urn:gbs:recovery" not in network.XMLDesc(0):
                continue
            definitions = [
                domain.XMLDesc(flags)
                for domain in connection.listAllDomains(0)
                for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE)
            ]
            if any(f"network='{ISOLATED}'" in text for text in definitions):
                return False
            if network.isActive():
                network.destroy()
            network.undefine()
            return True
        return False

    return host.call(f"remove network {ISOLATED}", "", remove)
