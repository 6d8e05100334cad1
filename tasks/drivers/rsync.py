"""rsync: pull a client's trees, fetch and send single large files.

Every transfer keeps owners by number, hard links, holes and, where both sides know them, ACLs and xattrs; it stays on
one file system per source, never deletes after a read error (no --ignore-errors), and resumes when called again. rsync
itself quotes names for the remote shell (since 3.2.4); --protect-args would be refused by rrsync(1), which a key can be
restricted to.
"""

import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.drivers import process
from tasks.drivers.short_path import shorten
from tasks.errors import AccessDenied, CommandFailed, ConfigError, SourceRefused, StoreFilled, TransferInterrupted
from tasks.model.platform import PROFILES, Platform
from tasks.model.rsync_daemon import DaemonTarget
from tasks.model.rsync_status import Verdict, verdict
from tasks.model.ssh_target import SshTarget, ssh_argv

CONNECT_DEADLINE_S = 15
PARTIAL_DIR = ".gbs-rsync-partial"
EXACT_TIMES = "--modify-window=-1"
"""Times are compared to the nanosecond. rsync compares seconds unless told to, and takes a file that was written again
within one, its size as before, for the old one. Where seconds are all that is kept, every file would seem changed."""
Source = SshTarget | DaemonTarget | Path
OnProgress = Callable[[int, int | None], None]
STALL_S = 120
"""rsync gives up when nothing moves for this long; the flow retries and resumes."""

_STATS = {
    "files": re.compile(rb"^Number of files: (\d+)", re.M),
    "changed": re.compile(rb"^Number of regular files transferred: (\d+)", re.M),
    "deleted": re.compile(rb"^Number of deleted files: (\d+)", re.M),
    "size_bytes": re.compile(rb"^Total file size: (\d+)", re.M),
    "received_bytes": re.compile(rb"^Total bytes received: (\d+)", re.M),
    "sent_bytes": re.compile(rb"^Total bytes sent: (\d+)", re.M),
}
_PROGRESS = re.compile(rb"\r\s*(\d+)\s+(\d+)%")


@dataclass(frozen=True)
class Transferred:
    """What a transfer did; `vanished` lists files that went away while they were read."""

    files: int
    changed: int
    deleted: int
    size_bytes: int
    received_bytes: int
    sent_bytes: int
    vanished: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What is pulled, and how: what is kept of files, patterns that are left out, trees that are linked to."""

    paths: Sequence[str]
    options: Sequence[str] = PROFILES[Platform.LINUX].rsync_options
    exclude: Sequence[str] = ()
    link_dests: Sequence[Path] = ()
    limit_kib_s: int | None = None
    fake_super: bool = False
    """Owners, modes, devices and xattrs go into an xattr, where the store cannot have them (rsync(1), --fake-super)."""
    whole_seconds: bool = False
    """Files of one size and one second are the same, where the store keeps no more of a time: see `EXACT_TIMES`."""


def pull_argv(source: Source, wanted: Wanted, destination: Path) -> list[str]:
    """The command that makes `destination` a copy of what is wanted, unchanged files hard-linked to `link_dests`.

    Paths keep their full names below `destination` (--relative); each is read on its own file system only.
    """
    argv = ["rsync", *wanted.options, "--one-file-system", "--relative", "--delete", "--delete-excluded"]
    # Protected: the exclude that rsync adds for it does not keep it from --delete-excluded.
    argv += [f"--filter=protect {PARTIAL_DIR}/", f"--partial-dir={PARTIAL_DIR}"]
    argv += [f"--timeout={STALL_S}", "--no-human-readable", "--stats", "--info=progress2", "--outbuf=N"]
    argv += [] if wanted.whole_seconds else [EXACT_TIMES]
    argv += ["--fake-super"] if wanted.fake_super else []
    argv += [f"--bwlimit={wanted.limit_kib_s}"] if wanted.limit_kib_s else []
    argv += [f"--exclude={pattern}" for pattern in wanted.exclude]
    argv += [f"--link-dest={folder}" for folder in wanted.link_dests]
    return [*argv, *_from(source, wanted.paths), f"{destination}/"]


def _from(source: Source, paths: Sequence[str]) -> list[str]:
    """The last options, and the words that name the paths: the host stands before the first one only."""
    match source:
        case SshTarget():
            first, other, options = f"{host_word(source.address)}:", ":", ["-e", shlex.join(ssh_argv(source))]
        case DaemonTarget():
            user = f"{source.user}@" if source.user else ""
            first, other = f"{user}{host_word(source.address)}::{source.module}", f"::{source.module}"
            options = [f"--port={source.port}", f"--contimeout={CONNECT_DEADLINE_S}"]
            options += [f"--password-file={source.password_file}"] if source.password_file else []
        case Path():
            return ["--", *(f"{source}/.{path}" for path in paths)]
    return [*options, "--", *(f"{other if position else first}{path}" for position, path in enumerate(paths))]


def host_word(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def pull(
    source: Source,
    wanted: Wanted,
    destination: Path,
    *,
    deadline_s: float,
    on_progress: OnProgress | None = None,
) -> Transferred:
    """Run `pull_argv`; the errors are those of `tasks.model.rsync_status`, transport breaks are transient.

    A `source` that is a folder is a tree that was brought here by other means.
    """
    destination.mkdir(parents=True, exist_ok=True)
    name = str(source) if isinstance(source, Path) else source.name
    if not wanted.link_dests:
        return transfer(pull_argv(source, wanted, destination), name, destination, deadline_s, on_progress)
    short = shorten([*wanted.link_dests, destination], [*_from(source, wanted.paths)])
    nearer = replace(wanted, link_dests=[short.of(folder) for folder in wanted.link_dests])
    argv = short.argv(pull_argv(source, nearer, short.of(destination)))
    return transfer(argv, name, destination, deadline_s, on_progress, told=short.told)


def carry_partial(aborted: Path, tree: Path) -> list[Path]:
    """Move what an interrupted pull had of single files into a new tree, where rsync goes on from it.

    Returns the folders; what is left in them after a pull belongs to files that went away: remove it.
    """
    carried = []
    for folder, below, _ in os.walk(aborted):
        if PARTIAL_DIR in below:
            below.remove(PARTIAL_DIR)
            there = tree / Path(folder).relative_to(aborted) / PARTIAL_DIR
            there.parent.mkdir(parents=True, exist_ok=True)
            Path(folder, PARTIAL_DIR).rename(there)
            carried.append(there)
    return carried


def reach(source: SshTarget | DaemonTarget, *, deadline_s: float) -> None:
    """List the root folder, which is all that a daemon or a key restricted to rsync can be tried with; as `pull`."""
    argv = ["rsync", "--list-only", f"--timeout={STALL_S}", *_from(source, ["/"])]
    transfer(argv, source.name, Path("/"), deadline_s, None)


def fetch_file(
    target: SshTarget,
    path: str,
    destination: Path,
    *,
    deadline_s: float,
    on_progress: OnProgress | None = None,
    watch: Callable[[], None] | None = None,
) -> Transferred:
    """Copy one large file of `target` to `destination` (a file), holes kept, resumable; `watch` as `process.run`."""
    argv = [*_file_argv(target), "--", f"{host_word(target.address)}:{path}", str(destination)]
    return transfer(argv, target.name, destination, deadline_s, on_progress, watch)


def send_file(
    target: SshTarget, source: Path, path: str, *, deadline_s: float, on_progress: OnProgress | None = None
) -> Transferred:
    """Copy one large file to `path` on `target`, holes kept, resumable."""
    argv = [*_file_argv(target), "--", str(source), f"{host_word(target.address)}:{path}"]
    return transfer(argv, target.name, source, deadline_s, on_progress)


def _file_argv(target: SshTarget) -> list[str]:
    return [
        *("rsync", "--sparse", "--times", "--partial", "--whole-file", f"--timeout={STALL_S}"),
        *("--no-human-readable", "--stats", "--info=progress2", "--outbuf=N", "-e", shlex.join(ssh_argv(target))),
    ]


def transfer(
    argv: list[str],
    source: str,
    local: Path,
    deadline_s: float,
    on_progress: OnProgress | None,
    watch: Callable[[], None] | None = None,
    told: Callable[[str], str] = str,
    on_line: Callable[[bytes], None] | None = None,
) -> Transferred:
    """Run an rsync of `source`, whose disk is that of `local`; the errors are those of `pull`.

    `on_line` is given all that it printed, once it has ended.
    """
    output = bytearray()

    def take(chunk: bytes) -> None:
        output.extend(chunk)
        found = _PROGRESS.findall(bytes(output[-200:]))
        if found and on_progress is not None:
            done, percent = (int(number) for number in found[-1])
            on_progress(done, done * 100 // percent if percent else None)

    finished = process.run(
        argv,
        deadline_s=deadline_s,
        accept=lambda status: True,
        on_output=take,
        watch=watch,
        name=f"rsync of {source}",
    )
    finished = replace(finished, stderr=told(finished.stderr))
    stats = {name: _number(pattern, output) for name, pattern in _STATS.items()}
    vanished = tuple(line for line in finished.stderr.splitlines() if "vanished" in line)
    _raise_for(finished, source, local)
    if on_line is not None:
        for line in bytes(output).splitlines():
            on_line(line)
    return Transferred(**stats, vanished=vanished if verdict(finished.status) is Verdict.VANISHED else ())


def _number(pattern: re.Pattern[bytes], output: bytearray) -> int:
    found = pattern.search(output)
    return int(found[1]) if found else 0


def _raise_for(finished: process.Finished, source: str, local: Path) -> None:
    called, stderr = f"rsync of {source}", finished.stderr
    match verdict(finished.status):
        case Verdict.GOOD | Verdict.VANISHED:
            return
        case Verdict.TOO_MANY_DELETIONS:
            raise SourceRefused(source, "more files are gone than may be deleted in one night")
        case _ if full := process.no_room(stderr):
            raise StoreFilled(str(local), full)
        case _ if "Host key verification failed" in stderr or "REMOTE HOST IDENTIFICATION" in stderr:
            raise AccessDenied(source, "its host key is unknown or has changed", "compare it and correct known_hosts")
        case _ if "Permission denied (publickey" in stderr:
            raise AccessDenied(source, "login failed", "authorise the key of its SSH identity")
        case _ if "@ERROR: auth failed" in stderr:
            raise AccessDenied(source, "its rsync daemon refused the login", "correct user and password_file of daemon")
        case _ if "@ERROR: Unknown module" in stderr or "password file must" in stderr:
            raise ConfigError("rsync daemon", source, " ".join(stderr.split())[:200])
        case Verdict.INTERRUPTED:
            raise TransferInterrupted(called, finished.status, stderr)
        case _:
            raise CommandFailed(called, finished.status, stderr)
