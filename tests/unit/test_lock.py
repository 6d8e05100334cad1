"""Locks: one holder, named, and none that outlives its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.drivers.lock import hold
from tasks.errors import Locked

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from tasks.drivers.lock import hold
with hold(Path(sys.argv[1]), "client web1", "run-7"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    argv = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_second_holder_in_another_process_is_refused_and_told_who(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "client-web1"
    with holder(path) as process:
        with (
            pytest.raises(Locked, match=rf"client web1 is locked.*pid {process.pid} since 20.*\(run-7\)") as caught,
            hold(path, "client web1"),
        ):
            pass
        assert caught.value.exit_code == 11
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with hold(path, "client web1"):
            pass


def test_second_holder_in_another_thread_is_refused(tmp_path: Path) -> None:
    refused: list[BaseException] = []

    def second() -> None:
        try:
            with hold(tmp_path / "lock", "it"):
                pass
        except Locked as exc:
            refused.append(exc)

    with hold(tmp_path / "lock", "it"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 1


def test_lock_is_free_after_its_body_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), hold(tmp_path / "lock", "it"):
        raise RuntimeError
    with hold(tmp_path / "lock", "it"):
        pass


def test_child_of_the_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    with hold(tmp_path / "lock", "it"):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with hold(tmp_path / "lock", "it"):
            pass
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "\x00"])
def test_holder_that_left_no_name_is_unknown(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lock"
    with hold(path, "it"):
        path.write_text(content)
        with pytest.raises(Locked, match="an unknown process"), hold(path, "it"):
            pass


def test_lock_is_nobody_elses_to_read(tmp_path: Path) -> None:
    with hold(tmp_path / "locks" / "x", "it"):
        assert (tmp_path / "locks" / "x").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "locks").stat().st_mode & 0o777 == 0o700
