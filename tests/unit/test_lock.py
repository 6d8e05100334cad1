"""Locks: who holds them, and until when."""

import os
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
