"""Whose locks on a restic repository are removed: of those that are dead, never of one that nobody knows."""

from __future__ import annotations

import json
import os
import socket
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.drivers import restic_repository
from tasks.drivers.process import Finished
from tasks.drivers.restic_repository import Repository
from tasks.errors import CommandFailed, Locked

REMOVALS = [
    ("", 1, "by its id"),
    ("s3:https://s3.example.org/b", 1, "locked"),
    ("s3:https://s3.example.org/b", 31, "unlock"),
]
REPOSITORY = Repository("/nowhere", Path("/nowhere/password"), None, None, None)


@pytest.mark.parametrize("gone", [True, False])
def test_a_lock_that_cannot_be_read_stays_unless_it_is_gone_meanwhile(
    monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    called: list[str] = []

    def run(_repository: Repository, *words: str, **_: Any) -> Finished:
        called.append(words[0])
        if words[0] == "cat":
            raise CommandFailed("restic cat", 1, "the network is down")
        listed = b"" if gone and "cat" in called else b"one-lock\n"
        return Finished(words, 0, listed, "")

    monkeypatch.setattr(restic_repository, "run", run)
    if gone:
        restic_repository._remove_dead_locks(REPOSITORY)
    else:
        with pytest.raises(CommandFailed, match="the network is down"):
            restic_repository._remove_dead_locks(REPOSITORY)
        assert "unlock" not in called


@pytest.mark.parametrize(("url", "minutes", "expected"), REMOVALS)
def test_only_locks_that_were_told_dead_are_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, minutes: int, expected: str
) -> None:
    """A dead lock of ours whose process number another program has by now: restic would send that a SIGHUP."""
    since = datetime.now(UTC) - timedelta(minutes=minutes)
    held = {"hostname": socket.gethostname(), "pid": os.getpid(), "time": since.isoformat(), "username": "root"}
    (tmp_path / "locks").mkdir()
    for lock in ("dead", "came-since"):
        (tmp_path / "locks" / lock).touch()
    called: list[tuple[str, ...]] = []

    def run(_repository: Repository, *words: str, **_: Any) -> Finished:
        called.append(words)
        return Finished(words, 0, json.dumps(held).encode() if words[0] == "cat" else b"dead\n", "")

    monkeypatch.setattr(restic_repository, "run", run)
    repository = Repository(url or str(tmp_path), Path("/nowhere/password"))
    with pytest.raises(Locked, match=f"process {os.getpid()}") if expected == "locked" else nullcontext():
        restic_repository._remove_dead_locks(repository)
    unlocked = [words for words in called if words[0] == "unlock"]
    assert unlocked == ([("unlock",)] if expected == "unlock" else [])
    left = {path.name for path in (tmp_path / "locks").iterdir()}
    assert left == ({"came-since"} if expected == "by its id" else {"dead", "came-since"})


@pytest.mark.parametrize("of_now", [timedelta(days=-400), timedelta(), timedelta(days=400)])
@pytest.mark.parametrize(("hostname", "pid", "dead"), [(None, 1 << 30, True), (None, 1, True), ("other", 1, False)])
def test_what_a_lock_says_of_the_time_tells_nothing_of_whether_it_is_dead(
    of_now: timedelta, hostname: str | None, pid: int, dead: bool
) -> None:
    """Process 1 is no restic, and the other one is none at all."""
    time = (datetime.now(UTC) + of_now).isoformat()
    held = {"hostname": hostname or socket.gethostname(), "pid": pid, "time": time, "username": "root"}
    assert restic_repository._is_dead(held) == dead
