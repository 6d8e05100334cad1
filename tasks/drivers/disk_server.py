"""Disks that lie still, served over NBD by a qemu-nbd(8) of our own on their host, read-only, for as long as we read.

What travels is what a guest would read, without backing files and without what was never written.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tasks.drivers import qemu_img
from tasks.drivers.ssh_forward import forwarded
from tasks.model.ssh_target import SshTarget
from tasks.model.window import Layer

CONNECTIONS = 8
_SERVE = f"""
umask 077
servers= sockets=
trap 'kill $servers 2>/dev/null; rm -f $sockets' EXIT
trap 'exit 1' HUP INT TERM
while [ $# -gt 0 ]; do
    qemu-nbd --read-only --persistent --shared={CONNECTIONS} --socket="$1" "$2" </dev/null >&2 &
    servers="$servers $!" sockets="$sockets $1" server=$!
    until [ -S "$1" ]; do
        case "$(cut -d' ' -f3 /proc/$server/stat 2>/dev/null)" in ''|Z) exit 1;; esac
        sleep 0.02
    done
    shift 2
done
echo ready
cat >/dev/null
"""
"""Words: socket and graph of each disk. Its standard input ends with us, and then it ends the servers."""


@contextmanager
def served(target: SshTarget, disks: Mapping[str, Sequence[Layer]]) -> Iterator[dict[str, Path]]:
    """A socket of this machine for each disk (by name; its layers topmost first), while the block runs.

    Raises CommandFailed when qemu-nbd does not serve one of them, Unreachable and AccessDenied as ssh.
    """
    token = secrets.token_hex(8)
    sockets = {name: f"/run/gbs-nbd-{token}-{number}" for number, name in enumerate(disks)}
    words = [word for name, layers in disks.items() for word in (sockets[name], qemu_img.graph(layers))]
    with forwarded(target, sockets, ["sh", "-c", _SERVE, "gbs-disk-server", *words]) as local:
        yield local
