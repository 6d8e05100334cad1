"""restic 0.14 and later: what is done with a repository (`tasks.drivers.restic_repository`)."""

import json
import logging
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.drivers.process import Watch
from tasks.drivers.restic_repository import QUICK_S, Repository, run, time_of
from tasks.errors import CommandFailed, CommandTimedOut, IntegrityError, StoreNotMounted, is_transient
from tasks.model.names import one_line
from tasks.model.verify_choice import WHOLE

INCOMPLETE = 3
STALLED_S = 1800
"""restic itself gives up a server that fails after 15 minutes."""
_DAMAGED_PACK = re.compile(r"(?:[Pp]ack |want )([0-9a-f]{64})")
_ABOUT_DAMAGE = re.compile(
    r"does not exist|unexpected file size|does not match|not found|[Ff]ailed|contains|error|[Dd]amaged"
)
_READ_PACKS = re.compile(r"(\d+) / \d+ packs")
_UNREADABLE = re.compile(
    r"ciphertext verification failed|invalid data returned|(?:invalid|wrong) hash|not found in repository"
    r"|ReadFull\(<data/\w+>\): (?:unexpected )?EOF|/[0-9a-f]{64}: no such file or directory"
    r"|specified key does not exist|from \d+ packs failed"
)
"""What restic says of something that is damaged or gone, and not only out of reach."""
_UNLISTED = re.compile("could not load snapshot|Ignoring ")
_NO_SUCH_PATH = re.compile(r"path .* not found in snapshot")
log = logging.getLogger(__name__)
LONGEST_WORDS = 300
_PATTERN = re.compile(r"[\\*?\[\]]")
"""What is no plain character in a pattern of restic's."""


@dataclass(frozen=True)
class Snapshot:
    """A snapshot; `tree` is what is in it, and stays when its tags change, as its id does not."""

    id: str
    tree: str
    time: datetime
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """A snapshot that was made, and how many regular files are in it."""

    id: str
    files: int


def snapshots(repository: Repository) -> list[Snapshot] | None:
    """Every snapshot, oldest first; None when there is no repository.

    One that is damaged is told and left out, as restic does with any that it cannot read: CommandFailed for the others.
    """
    try:
        finished = run(repository, "snapshots", "--json", "--no-lock", deadline_s=QUICK_S)
    except StoreNotMounted:
        return None
    if finished.cut:
        raise CommandFailed("restic snapshots", finished.status, "it had more to say than is kept: who is left out?")
    for line in filter(_UNLISTED.match, finished.stderr.splitlines()):
        if not _UNREADABLE.search(line):
            raise CommandFailed("restic snapshots", finished.status, line)
        log.error("restic repository %s: %s", repository.url, line)
    rows: list[dict[str, Any]] = json.loads(finished.text or "[]") or []
    found = [Snapshot(row["id"], row["tree"], time_of(row["time"]), tuple(row.get("tags") or ())) for row in rows]
    return sorted(found, key=lambda snapshot: snapshot.time)


def initialise(repository: Repository) -> None:
    """Make the repository."""
    run(repository, "init", deadline_s=QUICK_S)


def backup(
    repository: Repository,
    folder: Path,
    names: Sequence[str],
    *,
    host: str,
    instant: datetime,
    tags: Sequence[str],
    deadline_s: float,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_wait: Watch = lambda: None,
) -> Made:
    """A snapshot of these entries of a folder; `on_progress` is told bytes done and in all, `on_wait` called meanwhile.

    CommandTimedOut when nothing moves for STALLED_S: 0.14 may wait for itself after an error.
    CommandFailed when anything could not be read: restic makes a snapshot all the same, which is forgotten again.
    """
    said = _Backup(on_progress)
    words = ["backup", "--json", "--host", host, "--time", f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S}"]
    # Hard links between nights change a file's ctime every night; stage 1 never changes a file that it has published.
    words += ["--ignore-ctime", *(word for tag in tags for word in ("--tag", tag)), "--", *names]

    def wait() -> None:
        on_wait()
        said.require_moving()

    finished = run(
        repository,
        *words,
        deadline_s=deadline_s,
        cwd=folder,
        on_output=said,
        on_wait=wait,
        accept=lambda ended: ended.status in (0, INCOMPLETE),
    )
    summary = said.summary
    if finished.status == INCOMPLETE or summary is None:
        if summary is not None:
            forget(repository, [summary["snapshot_id"]])
        raise CommandFailed("restic backup", finished.status, finished.stderr or "it did not say what it made")
    return Made(summary["snapshot_id"], summary["total_files_processed"])


class _Lines:
    """What restic says as lines of JSON, each given to `on_row` when it is there."""

    def __init__(self, on_row: Callable[[dict[str, Any]], None]) -> None:
        self._on_row, self._rest = on_row, b""

    def __call__(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                self._on_row(json.loads(line))


class _Backup(_Lines):
    """What `backup --json` says."""

    def __init__(self, on_progress: Callable[[int, int], None]) -> None:
        super().__init__(self._note)
        self._on_progress, self._done, self._moved = on_progress, -1, time.monotonic()
        self.summary: dict[str, Any] | None = None

    def _note(self, said: dict[str, Any]) -> None:
        if said.get("message_type") == "summary":
            self.summary = said
        elif said.get("message_type") == "status":
            done = said.get("bytes_done", 0)
            if done != self._done:
                self._done, self._moved = done, time.monotonic()
            self._on_progress(done, said.get("total_bytes", 0))

    def require_moving(self) -> None:
        if time.monotonic() - self._moved > STALLED_S:
            raise CommandTimedOut("restic backup", STALLED_S, "nothing has moved since")


def retag(repository: Repository, ids: Collection[str], *, add: str, remove: str) -> None:
    """Take one tag from snapshots and give them another; their ids change."""
    if ids:
        run(repository, "tag", "--add", add, "--remove", remove, *ids, deadline_s=QUICK_S)


def forget(repository: Repository, ids: Collection[str], *, prune_deadline_s: float | None = None) -> None:
    """Remove snapshots; with a deadline also the data that nothing refers to any more, some waste allowed."""
    prune = ["--prune", "--max-unused", "10%"] if prune_deadline_s else []
    if ids:
        run(repository, "forget", *prune, *ids, deadline_s=prune_deadline_s or QUICK_S)


def prune(repository: Repository, deadline_s: float) -> None:
    """Remove the data that nothing refers to, as far as that needs no room."""
    run(repository, "prune", "--max-unused", "unlimited", deadline_s=deadline_s)


def restore(
    repository: Repository,
    snapshot: str,
    target: Path,
    *,
    only: Sequence[str] = (),
    deadline_s: float,
    on_wait: Watch = lambda: None,
) -> None:
    """Write a snapshot below `target`, all of it or `only` some of its paths; `on_wait` is called meanwhile.

    CommandFailed when a single file cannot be brought back.
    """
    included = [word for path in only for word in ("--include", _PATTERN.sub(r"\\\g<0>", path))]
    words = ["restore", snapshot, "--target", str(target), *included]
    run(repository, *words, deadline_s=deadline_s, on_wait=on_wait)


def sizes(repository: Repository, snapshot: str, paths: Collection[str], deadline_s: float) -> dict[str, int]:
    """The sizes of files of a snapshot in bytes, as far as they are there and their names are UTF-8."""
    found: dict[str, int] = {}

    def note(row: dict[str, Any]) -> None:
        if row.get("type") == "file" and row.get("path") in paths:
            found[row["path"]] = row["size"]

    run(repository, "ls", "--json", "--no-lock", snapshot, deadline_s=deadline_s, on_output=_Lines(note))
    return found


def dump(repository: Repository, snapshot: str, path: str) -> bytes | None:
    """The content of a file in a snapshot; None when it has no such file, IntegrityError when that is damaged.

    Any other failure is no word about what is kept.
    """
    try:
        return run(repository, "dump", "--no-lock", snapshot, path, deadline_s=QUICK_S).stdout
    except CommandFailed as exc:
        if _NO_SUCH_PATH.search(str(exc)):
            return None
        if is_damage(exc):
            raise IntegrityError(f"snapshot {snapshot[:8]}: {path}", "what was stored", one_line(str(exc))) from exc
        raise


def is_damage(error: CommandFailed) -> bool:
    """Whether it failed as something that is kept is damaged or gone; else it is no word about that."""
    return not is_transient(error) and _UNREADABLE.search(str(error)) is not None


@dataclass(frozen=True)
class Found:
    """What a reading of a repository found: how many packs it read, which are damaged, what restic says of that.

    Nothing is damaged when it says nothing. No damaged packs, when it says so much that some may be missing.
    """

    packs: int
    damaged: frozenset[str]
    said: str


def check(repository: Repository, percent: float, deadline_s: float) -> Found:
    """Read the repository, of its data `percent`."""
    depth = ["--read-data"] if percent >= WHOLE else [f"--read-data-subset={percent:g}%"]
    # Any other failure is no word about what is kept.
    errors = re.compile(r"repository contains errors|LoadIndex returned errors")
    finished = run(
        repository,
        *("check", *depth),
        deadline_s=deadline_s,
        accept=lambda ended: ended.status == 0 or errors.search(ended.stderr) is not None,
    )
    read = max((int(count) for count in _READ_PACKS.findall(finished.text)), default=0)
    if finished.status == 0:
        return Found(read, frozenset(), "")
    packs, said = parse_damage(f"{finished.text}\n{finished.stderr}")
    return Found(read, frozenset(() if finished.cut else packs), said)


def stored_bytes(repository: Repository, deadline_s: float) -> int:
    """The size of all that snapshots need, as it is stored."""
    words = ("stats", "--json", "--no-lock", "--mode", "raw-data")
    return int(json.loads(run(repository, *words, deadline_s=deadline_s).text)["total_size"])


def parse_damage(text: str) -> tuple[set[str], str]:
    """The damaged packs that `restic check` names, and its words about damage."""
    about = [line.strip() for line in text.splitlines() if _ABOUT_DAMAGE.search(line) and not line.startswith("Load(")]
    packs = {found[1] for line in about if (found := _DAMAGED_PACK.search(line))}
    return packs, "; ".join(about)[:LONGEST_WORDS] or text.strip()[-LONGEST_WORDS:]


@dataclass(frozen=True)
class Hit:
    """A file in a snapshot that needs a blob of a pack."""

    snapshot: str
    path: str
    blob: str


def hits_of(repository: Repository, packs: Collection[str], deadline_s: float) -> list[Hit] | None:
    """The files whose content lies in packs; None when that cannot be found out."""
    if not packs:
        return None
    try:
        finished = run(repository, "find", "--json", "--no-lock", "--pack", *packs, deadline_s=deadline_s)
        rows = json.loads(finished.text or "null") or []
    except (CommandFailed, ValueError) as exc:
        if is_transient(exc):
            raise
        return None
    if any(row.get("object_type") == "tree" for row in rows):
        return None  # which files a damaged folder had is not known
    return [Hit(row["snapshot"], row["path"], row["id"]) for row in rows] or None
