"""A dead man's switch on the KVM host: what we stopped starts again by itself when we die or the line is cut.

It is a sleeping shell on the host that runs one virsh command when nobody has ended it in time.
"""

import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.drivers.host_shell import HostShell
from tasks.drivers.libvirt_host import HostDomain
from tasks.errors import GbsError

_START = """
setsid sh -c 'sleep "$1"; exec virsh --quiet --connect "$2" "$3" "$4"' sh "$@" </dev/null >/dev/null 2>&1 &
echo $!
"""
_DEADLINE_S = 15
_log = logging.getLogger(__name__)


@contextmanager
def armed(shell: HostShell, domain: HostDomain, verb: str, after_s: int) -> Iterator[None]:
    """While the body runs for longer than `after_s`, or we died in it, the host does `virsh <verb> <VM>` by itself.

    It is a second belt: a host without virsh or with a broken shell does not stop the body.
    """
    argv = ["sh", "-c", _START, "sh", str(after_s), domain.host.local_uri, verb, domain.uuid]
    group = ""
    try:
        group = shell.run(argv, deadline_s=_DEADLINE_S, name=f"arming virsh {verb}").stdout.strip()
    except GbsError as exc:
        _log.warning("VM %s: no dead man's switch for virsh %s: %s", domain.name, verb, exc)
    try:
        yield
    finally:
        if group.isdecimal():
            with contextlib.suppress(GbsError):
                shell.run(["kill", "--", f"-{group}"], deadline_s=_DEADLINE_S, check=False, name="disarming")
