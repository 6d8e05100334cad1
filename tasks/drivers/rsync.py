"""rsync: pull a client's trees, fetch and send single large files.

Every transfer keeps owners by number, hard links, ACLs, xattrs and holes, stays on one file system per source, never
deletes after a read error (no --ignore-errors), and resumes when called again. rsync itself quotes names for the remote
shell (since 3.2.4); --protect-args would be refused by rrsync(1), which a key can be restricted to.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.drivers import process
from tasks.errors import AccessDenied, CommandFailed, SourceRefused, StoreFull, TransferInterrupted
from tasks.model.rsync_status import Verdict, verdict
from tasks.model.ssh_target import SshTarget, ssh_argv

OnProgress = Callable[[int, int | None], None]
STALL_S = 120
"""rsync gives up when nothing moves for this long; the flow retries and resumes."""
TREE = ("--archive", "--hard-links", "--acls", "--xattrs", "--sparse", "--numeric-ids")

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


def escaped(path: str) -> str:
    """The pattern that matches this path only (rsync(1), "Pattern matching rules": without wildcards it is literal)."""
    return re.sub(r"([*?\[\\])", r"\\\1", path) if re.search(r"[*?\[]", path) else path


def pull_argv(
    target: SshTarget,
    paths: Sequence[str],
    destination: Path,
    *,
    exclude: Sequence[str],
    link_dests: Sequence[Path],
    limit_kib_s: int | None = None,
) -> list[str]:
    """The command that makes `destination` a copy of `paths` of `target`, unchanged files hard-linked to `link_dests`.

    Paths keep their full names below `destination` (--relative); each is read on its own file system only. At most
    `limit_kib_s` travel.
    """
    argv = ["rsync", *TREE, "--one-file-system", "--relative", "--delete", "--delete-excluded"]
    argv += ["--partial-dir=.gbs-rsync-partial", f"--timeout={STALL_S}", "--no-human-readable", "--stats"]
    argv += ["--info=progress2", "--outbuf=N"]
    argv += [f"--bwlimit={limit_kib_s}"] if limit_kib_s else []
    argv += [f"--exclude={pattern}" for pattern in exclude]
    argv += [f"--link-dest={folder}" for folder in link_dests]
    argv += ["-e", shlex.join(ssh_argv(target)), "--"]
    host = f"[{target.address}]" if ":" in target.address else target.address
    argv += [f"{host}:{path}" if not position else f":{path}" for position, path in enumerate(paths)]
    return [*argv, f"{destination}/"]


def pull(
    target: SshTarget,
    paths: Sequence[str],
    destination: Path,
    *,
    exclude: Sequence[str] = (),
    link_dests: Sequence[Path] = (),
    limit_kib_s: int | None = None,
    deadline_s: float,
    on_progress: OnProgress | None = None,
) -> Transferred:
    """Run `pull_argv`; the errors are those of `tasks.model.rsync_status`, transport breaks are transient."""
    destination.mkdir(parents=True, exist_ok=True)
    argv = pull_argv(target, paths, destination, exclude=exclude, link_dests=link_dests, limit_kib_s=limit_kib_s)
    return _run(argv, target.name, destination, deadline_s, on_progress)


def reach(target: SshTarget, *, deadline_s: float) -> None:
    """List the root folder, which is all that a key restricted to rsync can be tried with; errors as `pull`."""
    host = f"[{target.address}]" if ":" in target.address else target.address
    argv = ["rsync", "--list-only", f"--timeout={STALL_S}", "-e", shlex.join(ssh_argv(target)), "--", f"{host}:/"]
    _run(argv, target.name, Path("/"), deadline_s, None)


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
    argv = _file_argv(target)
    host = f"[{target.address}]" if ":" in target.address else target.address
    return _run(
        [*argv, "--", f"{host}:{path}", str(destination)], target.name, destination, deadline_s, on_progress, watch
    )


def send_file(
    target: SshTarget, source: Path, path: str, *, deadline_s: float, on_progress: OnProgress | None = None
) -> Transferred:
    """Copy one large file to `path` on `target`, holes kept, resumable."""
    argv = _file_argv(target)
    host = f"[{target.address}]" if ":" in target.address else target.address
    return _run([*argv, "--", str(source), f"{host}:{path}"], target.name, source, deadline_s, on_progress)


def _file_argv(target: SshTarget) -> list[str]:
    return [
        *("rsync", "--sparse", "--times", "--partial", "--whole-file", f"--timeout={STALL_S}"),
        *("--no-human-readable", "--stats", "--info=progress2", "--outbuf=N", "-e", shlex.join(ssh_argv(target))),
    ]


def _run(
    argv: list[str],
    source: str,
    local: Path,
    deadline_s: float,
    on_progress: OnProgress | None,
    watch: Callable[[], None] | None = None,
) -> Transferred:
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
    stats = {name: _number(pattern, output) for name, pattern in _STATS.items()}
    vanished = tuple(line for line in finished.stderr.splitlines() if "vanished" in line)
    _raise_for(finished, source, local)
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
        case _ if "No space left on device" in stderr or "Disk quota exceeded" in stderr:
            raise StoreFull(str(local), "more", "too few")
        case _ if "Host key verification failed" in stderr or "REMOTE HOST IDENTIFICATION" in stderr:
            raise AccessDenied(source, "its host key is unknown or has changed", "compare it and correct known_hosts")
        case _ if "Permission denied (publickey" in stderr:
            raise AccessDenied(source, "login failed", "authorise the key of its SSH identity")
        case Verdict.INTERRUPTED:
            raise TransferInterrupted(called, finished.status, stderr)
        case _:
            raise CommandFailed(called, finished.status, stderr)
