"""The journal file: durable, append-only, and readable whatever a power cut left of its last line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.drivers.journal import Journal, journal_path, unfinished
from tasks.errors import IntegrityError
from tasks.model.window import Step
from tests.unit.test_window import PLAN


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(journal_path(tmp_path, "kvm 1; rm -rf /", PLAN.uuid))


def test_journal_lies_below_slugs(tmp_path: Path, journal: Journal) -> None:
    assert journal.path.parent.parent == tmp_path
    assert journal.path.parent.name.startswith("kvm-1-rm-rf-")
    assert journal.path.name == f"{PLAN.uuid}.jsonl"


def test_journal_returns_what_was_appended(journal: Journal) -> None:
    assert journal.records() == []
    assert journal.open_window() is None
    journal.append(Step.PREPARE, plan=PLAN)
    with journal.step(Step.COPY, "vda"):
        pass
    window = journal.open_window()
    assert window is not None
    assert window.plan == PLAN
    assert [(r.step, r.phase) for r in window.records] == [
        (Step.PREPARE, "done"),
        (Step.COPY, "intent"),
        (Step.COPY, "done"),
    ]
    assert journal.path.stat().st_mode & 0o777 == 0o600


def test_step_that_fails_says_so_and_raises(journal: Journal) -> None:
    journal.append(Step.PREPARE, plan=PLAN)
    with pytest.raises(OSError, match="disk on fire"), journal.step(Step.COPY, "vda"):
        raise OSError("disk on fire")
    assert journal.records()[-1].phase == "failed"
    assert "disk on fire" in journal.records()[-1].note


def test_every_record_is_synced_before_append_returns(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    journal.append(Step.PREPARE, plan=PLAN)
    assert synced == [str(journal.path), str(journal.path.parent), str(journal.path.parent.parent)]
    synced.clear()
    journal.append(Step.FREEZE, "intent")
    assert synced == [str(journal.path)]


def test_torn_last_line_is_passed_over_wherever_it_was_cut(journal: Journal) -> None:
    journal.append(Step.FREEZE, "intent")
    journal.append(Step.PREPARE, plan=PLAN)
    whole = journal.path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) - 1):
        journal.path.write_bytes(whole[:cut])
        assert [r.step for r in journal.records()] == [Step.FREEZE]
    journal.path.write_bytes(whole[:-1])
    assert [r.step for r in journal.records()] == [Step.FREEZE, Step.PREPARE], "only the newline was lost"


def test_record_after_a_torn_line_stands_on_its_own(journal: Journal) -> None:
    journal.append(Step.PREPARE, plan=PLAN)
    with journal.path.open("ab") as file:
        file.write(b'{"at":"2026-01-02T03:0')
    journal.append(Step.FREEZE, "intent")
    assert [r.step for r in journal.records()] == [Step.PREPARE, Step.FREEZE]


def test_line_that_is_whole_but_makes_no_sense_is_damage(journal: Journal) -> None:
    journal.append(Step.PREPARE, plan=PLAN)
    with journal.path.open("ab") as file:
        file.write(b'{"at":"2026-01-02T03:04:05Z","step":"DANCE"}\n')
    with pytest.raises(IntegrityError, match="line 2"):
        journal.records()


def test_finished_journal_is_kept_as_the_last_one(journal: Journal, tmp_path: Path) -> None:
    journal.append(Step.PREPARE, plan=PLAN)
    assert unfinished(tmp_path) == [journal.path]
    assert unfinished(tmp_path, "kvm 1; rm -rf /") == [journal.path]
    assert unfinished(tmp_path, "other") == []
    journal.finish()
    assert unfinished(tmp_path) == []
    assert not journal.path.exists()
    assert journal.done_path.name == f"{PLAN.uuid}.done.jsonl"
    journal.finish()


def test_journal_killed_between_done_and_its_rename_is_finished(journal: Journal, tmp_path: Path) -> None:
    journal.append(Step.PREPARE, plan=PLAN)
    journal.append(Step.DONE)
    assert journal.open_window() is None
    assert unfinished(tmp_path) == []
    journal.append(Step.PREPARE, plan=PLAN)
    assert journal.open_window() is not None
