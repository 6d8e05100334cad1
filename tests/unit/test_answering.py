"""Calls in a child: results, errors, and what does not answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.drivers import answering
from tasks.drivers.answering import NoAnswer, ask, attend
from tasks.errors import StoreError
from tasks.model.names import slug


def refuse(path: str) -> None:
    raise StoreError(path, "refused")


def slowly(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


def unspeakable() -> threading.Lock:
    return threading.Lock()


def test_a_call_is_made_by_another_process_which_is_kept() -> None:
    first, second = ask(os.getpid, 20), ask(os.getpid, 20)
    assert first == second != os.getpid()
    assert ask(slug, 20, "a b") == slug("a b")


def test_what_it_raises_is_raised_here() -> None:
    with pytest.raises(StoreError, match="store /s: refused"):
        ask(refuse, 20, "/s")
    with pytest.raises(RuntimeError, match="cannot be passed on"):
        ask(unspeakable, 20)


def test_calls_do_not_wait_for_one_another() -> None:
    ask(os.getpid, 20)
    slow = threading.Thread(target=lambda: ask(time.sleep, 20, 2))
    slow.start()
    ask(os.getpid, 20)
    assert slow.is_alive()
    slow.join()


def test_one_that_does_not_answer_is_given_up_and_the_next_child_answers() -> None:
    old = ask(os.getpid, 20)
    errors: list[Exception] = []

    def wait_beside() -> None:
        try:
            ask(time.sleep, 60, 60)
        except NoAnswer as exc:
            errors.append(exc)

    beside = threading.Thread(target=wait_beside)
    beside.start()
    with pytest.raises(NoAnswer, match=r"within 0.3 s"):
        ask(time.sleep, 0.3, 60)
    beside.join(20)
    assert len(errors) == 1
    assert ask(os.getpid, 20) != old
    assert not Path(f"/proc/{old}").exists()


def test_one_that_is_attended_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "PROBE_EVERY_S", 0.1)
    probed: list[int] = []
    assert attend(slowly, lambda: probed.append(1), 0.5) == "done"
    assert len(probed) >= 2

    def probe() -> None:
        raise StoreError("/s", "gone")

    with pytest.raises(StoreError, match="gone"):
        attend(slowly, probe, 5)


class Unreadable(Exception):
    """It can be sent, and not be read back."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def raise_unreadable() -> None:
    raise Unreadable("one", "two")


def test_answer_that_cannot_be_read_back_leaves_nobody_waiting() -> None:
    with pytest.raises(NoAnswer):
        attend(raise_unreadable, lambda: None)
    assert ask(os.getpid, 20)


def test_a_child_that_was_killed_is_replaced() -> None:
    os.kill(ask(os.getpid, 20), signal.SIGKILL)
    for _ in range(100):
        try:
            assert ask(os.getpid, 20)
            return
        except NoAnswer:  # it was not yet seen to be dead
            time.sleep(0.05)
    pytest.fail("it was never replaced")


def test_it_ends_with_its_parent() -> None:
    code = "import os; from tasks.drivers.answering import ask; print(ask(os.getpid, 20), flush=True); os._exit(1)"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stdout)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} is still there")
