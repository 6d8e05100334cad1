"""The exports of a VM that runs from the store: begun, proven, ended."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.drivers import lock, qemu_img
from tasks.drivers.host_shell import HostShell
from tasks.drivers.instant_server import GO, Exports
from tasks.drivers.libvirt_host import Host
from tasks.errors import CommandFailed, CommandTimedOut, LeftBehind, Unreachable
from tasks.model.instant import InstantVm
from tasks.model.instant_xml import baselabel
from tasks.model.ssh_target import SshTarget

log = logging.getLogger(__name__)
QUICK_S = 30
PROOF_DEADLINE_S = 60
END_DEADLINE_S = 20
LAUNCH_DEADLINE_S = 60
_PROGRAM = "tasks.drivers.instant_server"
# There, not here: a round trip takes longer than what is waited for.
_READ = """
ends=$(($(date +%s) + $1))
until said=$(qemu-img info -f raw --output json "$2" 2>/dev/null); do
    [ "$(date +%s)" -lt "$ends" ] || { qemu-img info -f raw "$2" >&2; exit 1; }
    sleep 0.02
done
printf '%s' "$said"
"""
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def begin(host: Host, shell: HostShell, target: SshTarget, record: InstantVm, held: Path) -> None:
    """Export the record's disks, unless that is done already; returns when the KVM host can read every one.

    `held` is the lock of the exports; what they have to say goes to a file beside it. Errors as of `prove`.
    """
    launch(host, shell, target, record, held)
    prove(shell, record, held)


def launch(host: Host, shell: HostShell, target: SshTarget, record: InstantVm, held: Path) -> None:
    """Start the exports, unless they run; `prove` waits until they can be read. CommandFailed when they do not begin.

    From when it returns they are found by their lock, and can be ended. Exports of anything else, which an earlier run
    left, are ended first.
    """
    shell.run(["install", "-d", "-m", "711", record.folder], deadline_s=QUICK_S)
    exports = Exports(
        what=f"export of {record.vm}",
        lock=held,
        target=target,
        owner=baselabel(host.call("ask for capabilities", "", lambda: str(host.connection.getCapabilities()))),
        sockets={record.socket(disk.target): qemu_img.graph([disk.served]) for disk in record.disks},
    )
    if _serve(held, exports):
        return
    if runs(held):
        log.warning("%s is not of these disks: it is ended, and begun anew", exports.what)
        end(held)
    server = _spawn(held)
    try:
        _say(server, f"{exports.to_json()}\n")
        _wait_for(server, held, exports)
        _say(server, GO)
    except BaseException:
        server.kill()  # it has started nothing yet
        raise
    finally:
        _close(server)


def _serve(held: Path, exports: Exports) -> bool:
    """Whether these very exports are served by the holder of the lock."""
    return runs(held) and _holder(held).get("run") == exports.mark


def _wait_for(server: "subprocess.Popen[bytes]", held: Path, exports: Exports) -> None:
    ends_at = time.monotonic() + LAUNCH_DEADLINE_S
    while True:
        ended = server.poll()
        # Not by asking for the lock as long as it may be free: that would keep the server from it for a moment.
        if _holder(held).get("pid") == server.pid and runs(held):
            return
        if ended is not None:
            if _serve(held, exports):  # another one was quicker
                return
            raise CommandFailed(exports.what, ended, f"it has not begun; see {log_of(held)}")
        if time.monotonic() > ends_at:
            raise CommandTimedOut(exports.what, LAUNCH_DEADLINE_S, f"it has not begun; see {log_of(held)}")
        time.sleep(0.01)


def _spawn(held: Path) -> "subprocess.Popen[bytes]":
    path = log_of(held)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as said:
        # Not by process.spawn: it must outlive us. -S: it needs nothing of our environment but the programs.
        return subprocess.Popen(
            [sys.executable, "-S", "-m", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_PACKAGE_ROOT), *_python_path()])},
            start_new_session=True,
        )


def _say(server: "subprocess.Popen[bytes]", line: str) -> None:
    assert server.stdin is not None  # noqa: S101 - a pipe, as asked for
    with suppress(BrokenPipeError):
        server.stdin.write(line.encode())
        server.stdin.flush()


def _close(server: "subprocess.Popen[bytes]") -> None:
    assert server.stdin is not None  # noqa: S101 - a pipe, as asked for
    with suppress(BrokenPipeError):
        server.stdin.close()


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def log_of(held: Path) -> Path:
    """What the exports had to say."""
    return held.with_name(f"{held.name}.log")


def prove(shell: HostShell, record: InstantVm, held: Path) -> None:
    """Read every export on the KVM host itself, as QEMU will. Unreachable with the reason when one cannot be in time.

    Never without the format: what lies in a raw disk is its guest's, and may look like anything.
    """
    for disk in record.disks:
        argv = ["sh", "-c", _READ, "sh", str(PROOF_DEADLINE_S), f"nbd+unix:///?socket={record.socket(disk.target)}"]
        called = f"read the export of {disk.target}"
        done = shell.run(argv, deadline_s=PROOF_DEADLINE_S + QUICK_S, check=False, name=called)
        if done.status != 0:
            reason = f"disk {disk.target} from the store cannot be read: {done.stderr.strip()[-300:]}"
            raise Unreachable(record.kvm_host, f"{reason}; see {log_of(held)}")
        if (size_bytes := json.loads(done.stdout)["virtual-size"]) != disk.size_bytes:
            said = f"it has {size_bytes} bytes; see {log_of(held)}"
            raise CommandFailed(f"export of {record.vm} {disk.target}", 0, said)


def runs(held: Path) -> bool:
    """Whether the exports behind this lock run."""
    return lock.is_held(held)


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
        pid = int(_holder(held)["pid"])
        return pid if _PROGRAM.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") else None
    except (OSError, ValueError, KeyError):
        return None


def _holder(held: Path) -> dict[str, Any]:
    """What the lock's holder, or its last one, wrote into it; nothing while it writes."""
    try:
        found = json.loads(held.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
