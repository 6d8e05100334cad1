"""Pull a client that has no rsync: its own tar writes to ssh, GNU tar unpacks here, and what is unchanged is linked.

Everything travels each time. GNU tar takes names below the folder only: a leading slash is cut off, a member with ".."
is an error, and a link that points out of the folder is made last (tar(1), --absolute-names). What went wrong on either
side of the pipe is told apart by both statuses.
"""

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from tasks.drivers import process, rsync
from tasks.drivers.rsync import OnProgress, Transferred, Wanted
from tasks.errors import AccessDenied, CommandFailed, StoreFilled, TransferInterrupted
from tasks.model.ssh_target import SshTarget, ssh_argv

_SSH_FAILED = 255
# $1: the folder, the rest: ssh and what it runs. Records of 64 KiB; a line every 16 MiB.
_PIPE = """
folder=$1
shift
"$@" | tar --extract --file=- --directory="$folder" --numeric-owner --same-owner --preserve-permissions --sparse \\
    --record-size=65536 --checkpoint=256 --checkpoint-action=echo='gbs read %u' 1>&2
echo "status ${PIPESTATUS[0]} ${PIPESTATUS[1]}"
"""
_RECORD_BYTES = 65536
_READ = re.compile(r"gbs read (\d+)")


def pull(
    target: SshTarget,
    tar: Sequence[str],
    wanted: Wanted,
    scratch: Path,
    destination: Path,
    *,
    deadline_s: float,
    on_progress: OnProgress | None = None,
) -> Transferred:
    """Unpack what is wanted in the new folder `scratch`, then make `destination` of it as `rsync.pull` does.

    Raises AccessDenied, TransferInterrupted when ssh broke, CommandFailed when the client's tar could not read
    something or the archive does not end as it should, StoreFull. `scratch` is removed in the end.
    """
    scratch.mkdir(parents=True)
    try:
        received = _unpack(target, tar, wanted.paths, scratch, deadline_s)
        moved = rsync.pull(scratch, wanted, destination, deadline_s=deadline_s, on_progress=on_progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Transferred(**{**vars(moved), "received_bytes": received})


def _unpack(target: SshTarget, tar: Sequence[str], paths: Sequence[str], scratch: Path, deadline_s: float) -> int:
    """Run the pipe; the bytes that travelled, by the archive's records."""
    script = f'cd / && exec {shlex.join(tar)} "$@"'
    there = shlex.join(["sh", "-c", script, "gbs", *(f".{path}" for path in paths)])
    argv = ["bash", "-c", _PIPE, "gbs", str(scratch), *ssh_argv(target), "--", target.address, there]
    done = process.run(argv, deadline_s=deadline_s, name=f"tar of {target.name}")
    status, unpacked = (int(word) for word in done.text.split()[-2:])
    said = " ".join(line for line in done.stderr.splitlines() if not _READ.search(line))
    if status == _SSH_FAILED and ("Permission denied (" in said or "Host key verification failed" in said):
        raise AccessDenied(target.name, said[-200:], "authorise the key of its SSH identity, check known_hosts")
    if status == _SSH_FAILED:
        raise TransferInterrupted(f"tar of {target.name}", status, said)
    if full := process.no_room(said):
        raise StoreFilled(str(scratch), full)
    if status or unpacked:
        raise CommandFailed(f"tar of {target.name}", status or unpacked, said)
    records = _READ.findall(done.stderr)
    return (int(records[-1]) if records else 1) * _RECORD_BYTES
