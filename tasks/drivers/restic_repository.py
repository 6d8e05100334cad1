"""Running restic on a repository: what opens it, what its errors are, which of its locks are dead.

A repository here belongs to one client, and whoever works on it holds the client's lock: so locks in it are another
server's, an operator's, or what a killed restic left. `restic unlock` asks whether a process lives by sending it a
SIGHUP, and takes whatever has got the number since for it: which locks are dead is told here, and only those go.
Errors are told by restic's words, and by the exit statuses that it has for them from 0.17 on.
"""

import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tasks.drivers import process
from tasks.drivers.process import Finished, Watch
from tasks.drivers.secret_file import read_environment, require_secret, struck_out
from tasks.errors import AccessDenied, CommandFailed, GbsError, Locked, StoreFull, StoreNotMounted, Unreachable

QUICK_S = 600
"""For what reads no data; over a slow link a large index takes minutes."""
NO_REPOSITORY, LOCKED, WRONG_PASSWORD = 10, 11, 12
_PASSWORD = re.compile("wrong password or no key found")
_ACCESS = re.compile(
    "access.?denied|forbidden|InvalidAccessKeyId|access key id you provided|SignatureDoesNotMatch|request signature we",
    re.IGNORECASE,
)
_FULL = re.compile("no space left on device|disk quota exceeded", re.IGNORECASE)
_UNOPENED = re.compile("Is there a repository at the following location")
_NONE = re.compile(
    r"(no such file or directory|does not exist\.?)\s*Is there a repository at the following location", re.IGNORECASE
)
"""What restic says of an unopened repository when it is none, and not only out of reach."""
DEAD_AFTER = timedelta(minutes=30)
"""restic writes its lock anew every five minutes, and `unlock` asks no more whether the process of one this old lives.

Of another host's lock this says nothing: its time is by that host's clock.
"""


@dataclass(frozen=True)
class Repository:
    """Where it is, what opens it, and for one below a mount that may not answer, who watches that meanwhile."""

    url: str
    password_file: Path
    environment_file: Path | None = None
    cache: Path | None = None
    watch: Watch | None = field(default=None, compare=False)

    @property
    def folder(self) -> Path | None:
        """Where its files lie; None when only restic speaks to what has them."""
        return Path(self.url) if self.url.startswith("/") else None


def run(
    repository: Repository,
    *words: str,
    deadline_s: float,
    cwd: Path | None = None,
    accept: Callable[[Finished], bool] = lambda finished: finished.status == 0,
    on_output: Callable[[bytes], None] | None = None,
    on_wait: Watch = lambda: None,
) -> Finished:
    """Run restic; a lock that a killed one left is removed.

    Raises AccessDenied for a wrong password, Locked when another one works on the repository, StoreNotMounted when
    there is none, StoreFull, Unreachable when its server does not answer, CommandFailed.
    """
    secrets = _secrets(repository)

    def watch() -> None:
        on_wait()
        if repository.watch is not None:
            repository.watch()

    def once() -> Finished:
        return process.run(
            ["restic", "--repo", repository.url, *_cache(repository), *words],
            deadline_s=deadline_s,
            env=_environment(repository, secrets),
            cwd=cwd,
            accept=lambda status: True,
            on_output=on_output,
            watch=watch,
            name=f"restic {words[0]}",
        )

    finished = once()
    if _is_locked(finished) and words[0] not in ("list", "cat", "unlock"):
        _remove_dead_locks(repository)
        finished = once()
    if accept(finished) and not _is_locked(finished):
        return finished
    raise _error(repository, words[0], finished, secrets)


def _secrets(repository: Repository) -> dict[str, str]:
    require_secret(repository.password_file)
    return read_environment(repository.environment_file)


def _environment(repository: Repository, secrets: Mapping[str, str]) -> dict[str, str]:
    # Progress as lines of JSON comes as often as a screen is drawn, else.
    ours = {"RESTIC_PASSWORD_FILE": str(repository.password_file), "RESTIC_PROGRESS_FPS": "1", "TZ": "UTC"}
    return {**secrets, **ours}


def _cache(repository: Repository) -> list[str]:
    return ["--cache-dir", str(repository.cache)] if repository.cache else ["--no-cache"]


def _is_locked(finished: Finished) -> bool:
    return finished.status == LOCKED or (finished.status == 1 and "repository is already locked" in finished.stderr)


def _error(repository: Repository, verb: str, finished: Finished, secrets: dict[str, str]) -> GbsError:
    said = struck_out(finished.stderr or finished.text[-process.TAIL_BYTES :].strip(), secrets)
    called = f"restic repository {repository.url}"
    if _is_locked(finished):
        return Locked(called, _line(said))
    for status, words, error in (
        (WRONG_PASSWORD, _PASSWORD, AccessDenied(called, "another password opens it", "correct its password_file")),
        (None, _ACCESS, AccessDenied(called, _line(said), "correct its environment_file")),
        (None, _FULL, StoreFull(repository.url, "more", "too few")),
        (NO_REPOSITORY, _NONE, StoreNotMounted(repository.url, "there is no restic repository", "mount or correct it")),
        (None, _UNOPENED, Unreachable(called, _line(said))),
    ):
        if finished.status == status or words.search(said):
            return error
    return CommandFailed(f"restic {verb}", finished.status, said)


def _line(said: str) -> str:
    return " ".join(said.split())[:300]


def _locks(repository: Repository) -> list[str]:
    return run(repository, "list", "locks", "--no-lock", deadline_s=QUICK_S).text.split()


def _remove_dead_locks(repository: Repository) -> None:
    """Remove what killed ones left, and no lock that came since; Locked when one may be somebody's who works."""
    dead = dict[str, Mapping[str, Any]]()
    for lock in _locks(repository):
        try:
            held = json.loads(run(repository, "cat", "lock", lock, "--no-lock", deadline_s=QUICK_S).text)
        except CommandFailed:
            if lock in _locks(repository):
                raise  # whose it is is not known
            continue  # it is gone meanwhile
        if not _is_dead(held):
            raise _locked(repository, held)
        dead[lock] = held
    if dead and repository.folder is not None:
        argv = ["rm", "--force", "--", *(str(repository.folder / "locks" / lock) for lock in dead)]
        process.run(argv, deadline_s=QUICK_S, watch=repository.watch, name=f"removal of locks in {repository.url}")
    elif dead:
        for held in dead.values():
            if not _is_old(held, datetime.now(UTC)) and os.path.exists(f"/proc/{held['pid']}"):
                raise _locked(repository, held)  # `unlock` would send a SIGHUP to whoever has that number by now
        run(repository, "unlock", deadline_s=QUICK_S)


def _locked(repository: Repository, held: Mapping[str, Any]) -> Locked:
    who = f"{held.get('username')} on {held.get('hostname')}, process {held.get('pid')}, since {held['time']}"
    if not _is_ours(held):
        who += "; if none works there any more: restic unlock"
    return Locked(f"restic repository {repository.url}", who)


def _is_ours(held: Mapping[str, Any]) -> bool:
    return bool(held.get("hostname") == socket.gethostname())


def _is_dead(held: Mapping[str, Any]) -> bool:
    """Whether it is of a process of this machine that is gone; of another's nobody here can tell."""
    if not _is_ours(held):
        return False
    try:
        return "restic" not in os.path.basename(os.readlink(f"/proc/{held['pid']}/exe"))
    except OSError:
        return True


def _is_old(held: Mapping[str, Any], now: datetime) -> bool:
    return now - time_of(held["time"]) > DEAD_AFTER


def time_of(text: str) -> datetime:
    """restic's times have nanoseconds, which Python's do not."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).astimezone(UTC)
