"""The program that exports a VM's disks from the store to its KVM host: `python -m tasks.drivers.instant_server`.

A qemu-nbd(8) per disk, read-only, on a socket here that only we can open; ssh carries each to a socket on the KVM host
that only QEMU's user can open. No port is opened anywhere. What ends is started again: a qemu-nbd, and the ssh
connection for as long as the KVM host is away.

It outlives whoever started it: a VM that runs from the store must not stop because a flow was killed. It holds a lock
meanwhile, by which it is found, and ends with SIGTERM.
"""

import hashlib
import json
import logging
import secrets
import shlex
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from types import FrameType
from typing import NoReturn

# Nothing but the standard library and what imports nothing else: a VM waits for us.
from tasks.drivers import lock, process
from tasks.errors import Locked
from tasks.model.ssh_target import SshTarget, ssh_argv

CONNECTIONS = 8
LOOK_EVERY_S = 0.1
AGAIN_AFTER_S = 2.0
LOCK_WAIT_S = 3
SSH = "ssh"
GO = "go\n"
"""What the one who began us says once he has seen us hold the lock. Until then we are not found, and outlive nobody."""
log = logging.getLogger(__name__)
_TAKE = """
umask 077
trap 'exit 0' HUP INT TERM
owner=$1
shift
while [ $# -gt 0 ]; do
    chown -- "$owner" "$1" && chmod 600 "$1" && mv -fT -- "$1" "$2" || exit 1
    shift 2
done
cat >/dev/null
"""
"""Words: QEMU's uid:gid, then for each export the socket as ssh made it and the name that QEMU knows.

A new socket takes the name in one step: sshd itself would not bind to a name that a broken connection left behind.
"""


@dataclass(frozen=True)
class Exports:
    """What is exported, and where to; the first line that the server reads from its standard input."""

    what: str
    lock: Path
    target: SshTarget
    owner: str
    sockets: dict[str, str]
    """Names for qemu-nbd that state a file's format, by the sockets' paths on the KVM host, whose folder is there."""

    @property
    def mark(self) -> str:
        """What is served and to whom, in short; the lock's holder says it."""
        served = json.dumps([asdict(self.target), self.owner, self.sockets], sort_keys=True, default=str)
        return f"serves {hashlib.sha256(served.encode()).hexdigest()[:16]}"

    def to_json(self) -> str:
        """As the server reads it."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Exports":
        """What `to_json` made."""
        found = json.loads(text)
        target = found["target"]
        files = {key: Path(target[key]) for key in ("private_key_file", "known_hosts_file")}
        return cls(**{**found, "lock": Path(found["lock"]), "target": SshTarget(**{**target, **files})})


class _Server:
    def __init__(self, exports: Exports, folder: Path) -> None:
        self.exports = exports
        self.local = {remote: folder / str(number) for number, remote in enumerate(exports.sockets)}
        self.children: dict[str, Popen[bytes]] = {}
        self.began: dict[str, float] = {}
        self._host = exports.target.name

    def look(self) -> None:
        """Start what does not run."""
        for remote, disk in self.exports.sockets.items():
            if self._is_due(remote, f"qemu-nbd of {disk}"):
                self.children[remote] = self._serve(remote, disk)
        # Meanwhile, not afterwards: a login takes longer than a qemu-nbd, and who reads too early tries again.
        if self._is_due(SSH, f"ssh to {self._host}"):
            self.children[SSH] = self._forward()

    def _is_due(self, name: str, called: str) -> bool:
        """Whether a child is to be started: it never was, or it ended, and was not started just before."""
        child = self.children.get(name)
        if child is not None and (child.poll() is None or time.monotonic() < self.began[name] + AGAIN_AFTER_S):
            return False
        if child is not None:
            log.warning("%s ended with status %d, it is started again", called, child.poll())
        self.began[name] = time.monotonic()
        return True

    def _serve(self, remote: str, disk: str) -> Popen[bytes]:
        argv = ["qemu-nbd", "--read-only", "--persistent", f"--shared={CONNECTIONS}"]
        argv += [f"--socket={self.local[remote]}", disk]
        return process.spawn(argv, stdin=DEVNULL)

    def _forward(self) -> Popen[bytes]:
        target, token = self.exports.target, secrets.token_hex(4)
        options = ["-o", "ExitOnForwardFailure=yes", "-o", "Compression=no"]
        words = [self.exports.owner]
        for remote, local in self.local.items():
            options += ["-R", f"{remote}.{token}:{local}"]
            words += [f"{remote}.{token}", remote]
        command = shlex.join(["sh", "-c", _TAKE, "gbs-instant", *words])
        # Its standard input ends with us, and with that the command over there.
        return process.spawn([*ssh_argv(target), *options, "--", target.address, command], stdin=PIPE)


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def main() -> int:
    """Export until SIGTERM; status 11 when another one does already, 1 when nobody waits for the lock to be held."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    signal.signal(signal.SIGTERM, _end)
    exports = Exports.from_json(sys.stdin.readline())
    try:
        # Who asks whether we run has the lock for a moment.
        turn = lock.one_of([exports.lock], exports.what, exports.mark, wait_s=LOCK_WAIT_S)
        with turn, tempfile.TemporaryDirectory(prefix="gbs-instant-") as folder:
            if sys.stdin.readline() != GO:
                log.info("%s: who began it was killed", exports.what)
                return 1
            server = _Server(exports, Path(folder))
            log.info("%s begins", exports.what)
            try:
                while True:
                    server.look()
                    time.sleep(LOOK_EVERY_S)
            finally:
                for child in server.children.values():
                    process.kill_session(child)
                log.info("%s ends", exports.what)
    except Locked as exc:
        log.info("%s", exc)
        return exc.exit_code


if __name__ == "__main__":
    sys.exit(main())
