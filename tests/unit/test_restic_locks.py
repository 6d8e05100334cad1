"""Whose locks on a restic repository are removed: of those that are dead, never of one that nobody knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.drivers import restic_repository
from tasks.drivers.process import Finished
from tasks.drivers.restic_repository import Repository
from tasks.errors import CommandFailed

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
