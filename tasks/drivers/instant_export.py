"""The exports of a VM that runs from the store: begun, proven, ended."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tasks.drivers import qemu_img
from tasks.drivers.host_shell import HostShell
from tasks.drivers.instant_server import Exports
from tasks.drivers.libvirt_host import Host
from tasks.errors import CommandFailed, LeftBehind, Unreachable
from tasks.model.instant import InstantVm
from tasks.model.instant_xml import baselabel
from tasks.model.ssh_target import SshTarget

QUICK_S = 30
PROOF_DEADLINE_S = 60
END_DEADLINE_S = 20
_PROGRAM = "tasks.drivers.instant_server"
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def begin(host: Host, shell: HostShell, target: SshTarget, record: InstantVm, held: Path) -> None:
    """Export the record's disks, unless that is done already; returns when the KVM host can read every one.

    `held` is the lock of the exports; what they have to say goes to a file beside it. Unreachable when the KVM host
    cannot read a disk in time, with the reason.
    """
    shell.run(["install", "-d", "-m", "711", record.folder], deadline_s=QUICK_S)
    exports = Exports(
        what=f"export of {record.vm}",
        lock=held,
        target=target,
        owner=baselabel(host.call("ask for capabilities", "", lambda: str(host.connection.getCapabilities()))),
        sockets={record.socket(disk.target): qemu_img.graph([disk.served]) for disk in record.disks},
    )
    log = log_of(held)
    if not runs(held):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as said:
            # Not by process.spawn: it must outlive us.
            server = subprocess.Popen(
                [sys.executable, "-m", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_PACKAGE_ROOT), *_python_path()])},
                start_new_session=True,
            )
        assert server.stdin is not None  # noqa: S101 - a pipe, as asked for
        with suppress(BrokenPipeError):
            server.stdin.write(exports.model_dump_json().encode())
            server.stdin.close()
    _prove(shell, record, log)


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def log_of(held: Path) -> Path:
    """What the exports had to say."""
    return held.with_name(f"{held.name}.log")


def _prove(shell: HostShell, record: InstantVm, log: Path) -> None:
    """Read every export on the KVM host itself, as QEMU will."""
    ends_at = time.monotonic() + PROOF_DEADLINE_S
    for disk in record.disks:
        argv = ["qemu-img", "info", "--output", "json", f"nbd+unix:///?socket={record.socket(disk.target)}"]
        while (done := shell.run(argv, deadline_s=QUICK_S, check=False)).status != 0:
            if time.monotonic() > ends_at:
                reason = f"disk {disk.target} from the store cannot be read: {done.stderr.strip()[-300:]}; see {log}"
                raise Unreachable(record.kvm_host, reason)
            time.sleep(0.1)
        if (size_bytes := json.loads(done.stdout)["virtual-size"]) != disk.size_bytes:
            raise CommandFailed(f"export of {record.vm} {disk.target}", 0, f"it has {size_bytes} bytes; see {log}")


def runs(held: Path) -> bool:
    """Whether the exports behind this lock run."""
    try:
        handle = os.open(held, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, and nothing is written: askers do not see one another, and the file names only servers.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def end(held: Path) -> None:
    """End the exports behind this lock; LeftBehind when they do not end."""
    ends_at = time.monotonic() + END_DEADLINE_S
    while runs(held):
        pid = pid_of(held)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if time.monotonic() > ends_at:
            undo = f"kill -9 {pid}" if pid else f"fuser -k {held}"
            raise LeftBehind(f"what exports the disks ({held})", f"it did not end in {END_DEADLINE_S} s", undo)
        time.sleep(0.05)
    for path in (held, log_of(held)):
        path.unlink(missing_ok=True)


def pid_of(held: Path) -> int | None:
    """The process that holds the lock, if it is a server of ours."""
    try:
        pid = int(json.loads(held.read_text())["pid"])
        return pid if _PROGRAM.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") else None
    except (OSError, ValueError, KeyError):
        return None
