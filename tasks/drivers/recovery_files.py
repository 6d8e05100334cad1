"""The files that a recovery put on a KVM host: which of those in their places are its own, and their removal."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from tasks.drivers.host_files import DEADLINE_S
from tasks.drivers.host_shell import HostShell, run_each
from tasks.drivers.libvirt_host import Host
from tasks.errors import CommandFailed, LeftBehind
from tasks.model.domain_xml import names_file
from tasks.model.recovery_record import FileId, PutFile, PutRecord

log = logging.getLogger(__name__)
# Also the names by which rsync has a file until its end.
_REMOVE_PARTIAL = 'rm -rf -- "$1" && exec rm -f -- "$2"/."$3".??????'
_TAKEN = 'a=$1 b=$2 c=$3; shift 3; du -sB1 -- "$a" "$a".tar "$b"/."$c".?????? "$@" 2>/dev/null | cut -f 1'


def identify(shell: HostShell, paths: Sequence[str]) -> list[FileId | None]:
    """Which files stand at these paths, in one round trip; CommandFailed when that cannot be said."""
    # statx(2) through GNU stat: %W is 0, or -, where the file system knows no birth.
    answers = run_each(shell, [["stat", "-c", "%d %i %.9W", "--", path] for path in paths], deadline_s=DEADLINE_S)
    found: list[FileId | None] = []
    for path, done in zip(paths, answers, strict=True):
        if done.status == 0:
            device, inode, born = done.stdout.split()
            found.append(FileId(int(device), int(inode), born if born.strip("0.-") else ""))
        elif "No such file or directory" in done.stderr or "Not a directory" in done.stderr:
            found.append(None)
        else:
            raise CommandFailed(f"stat {path}", done.status, done.stderr.strip())
    return found


def own(shell: HostShell, files: Iterable[PutFile]) -> list[PutFile]:
    """Those whose place has what the recovery put there."""
    files = list(files)
    found = identify(shell, [file.path for file in files])
    return [file for file, there in zip(files, found, strict=True) if file.is_it(there)]


def taken_bytes(shell: HostShell, record: PutRecord) -> dict[str, int]:
    """The room that what the recovery has put there takes, whole or not, by the path of each file."""
    found = {}
    whole = {file.path for file in own(shell, record.files)}
    for file in record.files:
        partial = record.partial(file.path)
        folder, name = str(PurePosixPath(partial).parent), PurePosixPath(partial).name
        argv = ["sh", "-c", _TAKEN, "sh", partial, folder, name, *([file.path] if file.path in whole else [])]
        sizes = shell.run(argv, deadline_s=DEADLINE_S, name=f"du {partial}").stdout.split()
        found[file.path] = sum(map(int, sizes))
    return found


def remove(host: Host, shell: HostShell, record: PutRecord) -> list[str]:
    """Remove what the recovery put there, whole or not; the paths. Its VM is not defined any more.

    What is not its own, and what a VM of the host names, is left and said. LeftBehind when something does not go.
    """
    for file in record.files:
        _remove_partial(shell, record.partial(file.path))
    found = identify(shell, [file.path for file in record.files])
    ours = [file for file, there in zip(record.files, found, strict=True) if file.is_it(there)]
    users = _users(host, record, ours)
    removed = []
    for file, there in zip(record.files, found, strict=True):
        where = f"{file.path} on {record.kvm_host}"
        if there is not None and file not in ours:
            log.warning("%s is not what the recovery put there: it is left alone", where)
        elif file in ours and file.path in users:
            log.warning("%s is left alone: VM %s has it", where, users[file.path])
        elif file in ours:
            done = shell.run(["rm", "-rf", "--", file.path], deadline_s=DEADLINE_S, check=False)
            if done.status != 0:
                raise LeftBehind(where, done.stderr.strip(), f"rm -r {file.path}")
            removed.append(file.path)
    return removed


def _remove_partial(shell: HostShell, partial: str) -> None:
    folder, name = str(PurePosixPath(partial).parent), PurePosixPath(partial).name
    for path, called in ((partial, name), (f"{partial}.tar", f"{name}.tar")):
        shell.run(["sh", "-c", _REMOVE_PARTIAL, "sh", path, folder, called], deadline_s=DEADLINE_S, name=f"rm {path}")


def _users(host: Host, record: PutRecord, files: Sequence[PutFile]) -> dict[str, str]:
    """The VMs that have these files, by path: a TPM's state belongs to the VM of that UUID, which names it nowhere."""
    users: dict[str, str] = {}
    for domain in host.domains() if files else ():
        texts = [domain.xml(), *filter(None, [domain.inactive_xml()])]
        for file in files:
            its_tpm = file.role == "tpm" and domain.uuid == record.uuid
            if its_tpm or any(names_file(text, file.path, file.volume) for text in texts):
                users[file.path] = domain.name
    return users
