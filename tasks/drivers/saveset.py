"""Pull an OpenVMS client: BACKUP writes a saveset of each path on the client, and sftp fetches it.

A saveset is one file: it keeps what OpenVMS knows of its files (organisation, protection, ACLs), and only BACKUP reads
it. Everything travels each time. Paths are written in OpenVMS's UNIX style, /disk/folder/folder.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tasks.drivers.rsync import OnProgress, Transferred
from tasks.drivers.ssh import Shell
from tasks.errors import CommandFailed
from tasks.model.names import slug
from tasks.model.platform import dcl

QUICK_S = 60
_BAD = ("-E-", "-F-")
"""Severities of a message that mean that something is not in the saveset (OpenVMS System Messages)."""


def folder_spec(path: str) -> str:
    """DISK:[A.B] of /disk/a/b, and DISK:[000000] of /disk."""
    disk, *folders = PurePosixPath(path).parts[1:]
    return f"{disk}:[{'.'.join(folders) or '000000'}]".upper()


def tree_spec(path: str) -> str:
    """Every version of every file below /disk/a/b: DISK:[A.B...]*.*;*."""
    return f"{folder_spec(path).removesuffix(']')}...]*.*;*"


def pull(
    shell: Shell,
    paths: Sequence[str],
    scratch_folder: str,
    destination: Path,
    *,
    deadline_s: float,
    on_progress: OnProgress | None = None,
) -> Transferred:
    """One saveset per path, made in `scratch_folder` of the client and brought to the same name below `destination`.

    Raises CommandFailed when BACKUP says that something is missing, Unreachable when the connection breaks or what came
    is not as long as what was made (paramiko compares).
    """
    received = 0
    for path in paths:
        name = f"{slug(path)}.bck"
        there = str(PurePosixPath(scratch_folder, name))
        saveset = f"{folder_spec(scratch_folder)}{name}".upper()
        _backup(shell, path, saveset, deadline_s)
        here = destination / there.lstrip("/")
        here.parent.mkdir(parents=True, exist_ok=True)
        try:
            received += shell.fetch(there, here, on_progress=on_progress)
        finally:
            shell.run(dcl(["DELETE/NOLOG", f"{saveset};*"]), deadline_s=QUICK_S, check=False, name="DELETE of saveset")
    count = len(paths)
    return Transferred(count, count, 0, received, received, 0)


def _backup(shell: Shell, path: str, saveset: str, deadline_s: float) -> None:
    """Make the saveset. Files that are open for writing are taken as they are, with a warning (/IGNORE=INTERLOCK)."""
    command = dcl(["BACKUP/IGNORE=INTERLOCK/NOASSIST", tree_spec(path), f"{saveset}/SAVE_SET"])
    done = shell.run(command, deadline_s=deadline_s, name=f"BACKUP of {path}")
    bad = [line for line in (done.stdout + done.stderr).splitlines() if any(mark in line for mark in _BAD)]
    if bad:
        raise CommandFailed(f"BACKUP of {path} on {shell.target.name}", done.status, " ".join(bad)[:500])
