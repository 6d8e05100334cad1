"""Freeze and thaw against an agent that is absent, hung, refuses, or dies while the guest is frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.drivers import guest_agent
from tasks.drivers.journal import Journal
from tasks.errors import GuestAgentError
from tasks.model.window import Step
from tests.unit.test_window import PLAN


class Agent:
    """A domain whose guest agent answers as told; it stands in for HostDomain and for libvirt's handle."""

    name = "vm1"

    def __init__(self, *, answers: bool = True, freezes: int = 2, thaws: bool = True, frozen: bool = False) -> None:
        self.answers, self.freezes, self.thaws, self.frozen = answers, freezes, thaws, frozen
        self.asked: list[str] = []

    def call(self, action: str, function: Callable, *, deadline_s: float = 60):
        assert deadline_s < 120
        return function(self)

    def agentSetResponseTimeout(self, deadline_s: int, flags: int) -> None:  # noqa: N802 - libvirt's name
        assert deadline_s > 0

    def fsFreeze(self) -> int:  # noqa: N802 - libvirt's name
        self.asked.append("freeze")
        if self.freezes < 0:
            raise GuestAgentError(self.name, "freeze", "timeout")
        self.frozen = self.freezes > 0
        return self.freezes

    def fsThaw(self) -> int:  # noqa: N802 - libvirt's name
        self.asked.append("thaw")
        if self.thaws:
            self.frozen = False
        return 0


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "kvm" / "vm.jsonl")
    made.append(Step.PREPARE, plan=PLAN)
    return made


@pytest.fixture(autouse=True)
def _agent_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def status(agent: Agent, deadline_s: int) -> str:
        if not agent.answers:
            raise GuestAgentError(agent.name, "status", "QEMU guest agent is not connected")
        return "frozen" if agent.frozen else "thawed"

    monkeypatch.setattr(guest_agent, "status", status)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def freeze(agent: Agent, journal: Journal, *, has_channel=True, wanted=True) -> guest_agent.Freeze:
    return guest_agent.freeze(agent, journal, has_channel=has_channel, wanted=wanted, deadline_s=5)  # type: ignore[arg-type]


def pending(journal: Journal) -> bool:
    window = journal.open_window()
    assert window is not None
    return window.pending(Step.FREEZE, Step.THAW)


def test_freeze_and_thaw_are_in_the_journal_and_verified(journal: Journal) -> None:
    agent = Agent()
    frozen = freeze(agent, journal)
    assert (frozen.frozen, frozen.consistency, frozen.asked) == (2, "file-system", True)
    assert pending(journal)
    guest_agent.thaw(agent, journal)  # type: ignore[arg-type]
    assert not agent.frozen
    assert not pending(journal)


@pytest.mark.parametrize(
    ("agent", "more", "reason"),
    [
        (Agent(), {"wanted": False}, "switched off"),
        (Agent(), {"has_channel": False}, "no guest agent channel"),
        (Agent(answers=False), {}, "does not answer"),
        (Agent(frozen=True), {}, "already"),
    ],
)
def test_freeze_that_is_not_possible_says_why_and_asks_nothing(agent, more, reason, journal: Journal) -> None:
    frozen = freeze(agent, journal, **more)
    assert (frozen.consistency, frozen.asked) == ("crash", False)
    assert reason in frozen.reason
    assert agent.asked == []
    assert not pending(journal)


def test_freeze_that_gets_stuck_is_no_error_but_a_thaw_is_due(journal: Journal) -> None:
    frozen = freeze(Agent(freezes=-1), journal)
    assert (frozen.consistency, frozen.asked) == ("crash", True)
    assert "timeout" in frozen.reason
    assert pending(journal)


def test_freeze_of_no_file_system_is_only_crash_consistent(journal: Journal) -> None:
    assert freeze(Agent(freezes=0), journal).consistency == "crash"


def test_thaw_that_does_not_thaw_is_tried_again_and_then_an_error(journal: Journal) -> None:
    agent = Agent(thaws=False, frozen=True)
    journal.append(Step.FREEZE, "intent")
    with pytest.raises(GuestAgentError, match="'frozen' after a thaw"):
        guest_agent.thaw(agent, journal)  # type: ignore[arg-type]
    assert agent.asked == ["thaw"] * guest_agent.THAW_TRIES
    assert pending(journal)
