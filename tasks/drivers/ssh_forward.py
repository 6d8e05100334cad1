"""Unix sockets of a remote system as sockets here, through ssh(1) with our host keys and no others."""

import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

from tasks.drivers import process
from tasks.drivers.libvirt_errors import no_connection
from tasks.errors import CommandFailed
from tasks.model.ssh_target import SshTarget, ssh_argv

DEADLINE_S = 60
READY = b"ready\n"
"""What a command says on its standard output once its sockets are there."""
_LOST = 255


@contextmanager
def forwarded(
    target: SshTarget, remote_sockets: Mapping[str, str], command: Sequence[str] = ()
) -> Iterator[dict[str, Path]]:
    """Sockets of this machine that lead to `remote_sockets` (by the same names) while the block runs.

    Remote sockets are absolute paths of letters, digits and `._-/` (ssh expands others). A `command` runs over there
    meanwhile: it says READY once they are there, and ends when its standard input does, which is when we are gone,
    however we went. Raises Unreachable or AccessDenied when ssh does not get there, CommandFailed when the command
    ends early.
    """
    with tempfile.TemporaryDirectory(prefix="gbs-ssh-") as folder:
        local = {name: Path(folder, str(number)) for number, name in enumerate(remote_sockets)}
        options = ["-o", "ExitOnForwardFailure=yes", "-o", "StreamLocalBindMask=0177"]
        # One connection carries all; compression would only cost.
        options += ["-o", "Compression=no"]
        for name, remote in remote_sockets.items():
            options += ["-L", f"{local[name]}:{remote}"]
        argv = [*ssh_argv(target), *options, *(() if command else ("-N",)), "--", target.address]
        log = Path(folder, "stderr")
        with log.open("wb") as stderr:
            if command:
                ssh = process.spawn([*argv, shlex.join(command)], stdin=PIPE, stdout=PIPE, stderr=stderr)
            else:
                ssh = process.spawn(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=stderr)
        try:
            _await(ssh, list(local.values()), target, log, said=not command)
            yield local
        finally:
            if ssh.stdin is not None:
                ssh.stdin.close()
                _let_end(ssh)
            process.kill_session(ssh)
            if ssh.stdout is not None:
                ssh.stdout.close()


def _await(ssh: Popen[bytes], sockets: Sequence[Path], target: SshTarget, log: Path, *, said: bool) -> None:
    ends_at = time.monotonic() + DEADLINE_S
    if ssh.stdout is not None:
        os.set_blocking(ssh.stdout.fileno(), False)
    heard = b""
    while not (said and all(socket.exists() for socket in sockets)):
        if ssh.stdout is not None:
            heard += ssh.stdout.read() or b""
            said = READY in heard
        if (status := ssh.poll()) is not None or time.monotonic() > ends_at:
            words = log.read_text("utf-8", "replace").strip()
            if status not in (None, _LOST):
                raise CommandFailed(f"command on {target.name}", status, words)
            raise no_connection(target.name, words or f"ssh did not forward within {DEADLINE_S} s")
        time.sleep(0.02)


def _let_end(ssh: Popen[bytes]) -> None:
    """Give the remote command the time to clean up, which it does because its standard input has ended."""
    ends_at = time.monotonic() + 5
    while ssh.poll() is None and time.monotonic() < ends_at:
        time.sleep(0.02)
