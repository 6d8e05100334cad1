"""Locks: who holds them, and until when."""

import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tasks.drivers import lock
from tasks.errors import Locked


def test_hold_held_by_another_says_who(tmp_path: Path) -> None:
    path, said = tmp_path / "lock", rf"client web1 is locked by another run: pid {os.getpid()} since .* \(nightly\)"
    with (
        lock.hold(path, "client web1", "nightly"),
        pytest.raises(Locked, match=said),
        lock.hold(path, "client web1"),
    ):
        pass
    with lock.hold(path, "client web1"):
        pass


def test_hold_child_still_has_a_copy_of_the_handle_lock_is_free_again(tmp_path: Path) -> None:
    """Symptom: with several clients side by side, a client's next stage was `locked by another run`: by our own pid."""
    path, copies = tmp_path / "lock", []
    with lock.hold(path, "client web1"):
        for handle in os.listdir("/proc/self/fd"):
            if os.path.realpath(f"/proc/self/fd/{handle}") == str(path):
                copies.append(os.dup(int(handle)))  # what a child has between fork and exec
    assert copies
    try:
        with lock.hold(path, "client web1"):
            pass
    finally:
        for copy in copies:
            os.close(copy)


def test_to_look_whether_it_is_held_leaves_it_free_though_a_child_has_a_copy_of_the_handle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, copies, closed = tmp_path / "lock", list[int](), os.close
    path.touch()

    def copied(handle: int) -> None:
        copies.append(os.dup(handle))  # what a child has between fork and exec
        closed(handle)

    monkeypatch.setattr(os, "close", copied)
    assert not lock.is_held(path)
    monkeypatch.undo()
    assert copies
    try:
        with lock.hold(path, "client web1"):
            pass
    finally:
        for copy in copies:
            os.close(copy)


def test_hold_somebody_looks_whether_it_is_held_is_not_kept_from_it(tmp_path: Path) -> None:
    """Symptom: `gbs status`, asked by monitoring, made a night end as locked by another run."""
    path, ended = tmp_path / "lock", threading.Event()
    path.touch()

    def look() -> None:
        while not ended.is_set():
            lock.is_held(path)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(300):
            with lock.hold(path, "client web1"):
                pass
            time.sleep(0.0005)
    finally:
        ended.set()
        looking.join()


def test_one_of_takes_any_that_is_free_and_waits_when_none_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "POLL_S", 0.01)
    slots = [tmp_path / f"slot-{number}" for number in range(2)]
    with ExitStack() as held:
        for _ in slots:
            held.enter_context(lock.one_of(slots, "images", wait_s=0))
        with pytest.raises(Locked, match="images is locked"), lock.one_of(slots, "images", wait_s=0.05):
            pass
        threading.Timer(0.2, held.pop_all().close).start()
        began = time.monotonic()
        with lock.one_of(slots, "images", wait_s=30):
            assert time.monotonic() - began > 0.1


def test_one_of_passes_on_what_the_body_raises(tmp_path: Path) -> None:
    """Locked by somebody else's lock inside the body is no reason to take the next slot."""
    slots = [tmp_path / f"slot-{number}" for number in range(2)]
    with pytest.raises(Locked, match="another thing"), lock.one_of(slots, "images", wait_s=9):
        raise Locked("another thing", "nobody")
