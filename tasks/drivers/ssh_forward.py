"""A unix socket of a remote system as a socket here, through ssh(1) with our host keys and no others."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL

from tasks.drivers import process
from tasks.drivers.libvirt_errors import no_connection
from tasks.model.ssh_target import SshTarget, ssh_argv

DEADLINE_S = 30


@contextmanager
def forwarded(target: SshTarget, remote_socket: str) -> Iterator[Path]:
    """A socket of this machine that leads to `remote_socket` while the block runs.

    `remote_socket` is an absolute path of letters, digits and `._-/` (ssh expands others). Unreachable or AccessDenied
    when ssh does not get there; that nothing listens at the other end shows at the first use.
    """
    with tempfile.TemporaryDirectory(prefix="gbs-ssh-") as folder:
        local, log = Path(folder, "socket"), Path(folder, "stderr")
        options = ["-N", "-n", "-o", "ExitOnForwardFailure=yes", "-o", "StreamLocalBindMask=0177"]
        # One connection carries all; compression would only cost.
        options += ["-o", "Compression=no", "-L", f"{local}:{remote_socket}"]
        with log.open("wb") as stderr:
            argv = [*ssh_argv(target), *options, "--", target.address]
            ssh = process.spawn(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=stderr)
        try:
            ends_at = time.monotonic() + DEADLINE_S
            while not local.exists():
                if ssh.poll() is not None or time.monotonic() > ends_at:
                    words = log.read_text("utf-8", "replace").strip()
                    raise no_connection(target.name, words or f"ssh did not forward within {DEADLINE_S} s")
                time.sleep(0.02)
            yield local
        finally:
            process.kill_session(ssh)
