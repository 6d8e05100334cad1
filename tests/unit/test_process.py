"""Programs: deadlines that hold for all they started, pipes that never block, ends that are told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.drivers import process
from tasks.drivers.process import run
from tasks.errors import CommandFailed, CommandTimedOut

ROOT = Path(__file__).parents[2]


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    """Whether the process ends within a few seconds."""
    for _ in range(100):
        if not is_alive(pid):
            return True
        time.sleep(0.05)
    return False


def pid_in(path: Path) -> int:
    for _ in range(200):
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(path)


def test_finished_has_what_the_program_left() -> None:
    done = run(["sh", "-c", "printf out; printf err >&2; exit 3"], deadline_s=10, accept=lambda status: status == 3)
    assert (done.status, done.stdout, done.stderr, done.text) == (3, b"out", "err", "out")


@pytest.mark.parametrize(("size", "cut"), [(0, False), (process.TAIL_BYTES, False), (process.TAIL_BYTES + 1, True)])
def test_finished_says_whether_its_stderr_was_cut(size: int, cut: bool) -> None:
    code = f"import sys; sys.stderr.write(('x' * {size - 1} + '\\n')[:{size}])"
    done = run([sys.executable, "-c", code], deadline_s=20)
    assert done.cut == cut
    assert len(done.stderr) == max(0, min(size, process.TAIL_BYTES) - 1)


def test_failure_carries_the_end_of_stderr() -> None:
    code = "import sys; sys.stderr.write('early ' + 'x' * 500_000 + ' the last words'); sys.exit(2)"
    with pytest.raises(CommandFailed, match="the last words") as caught:
        run([sys.executable, "-c", code], deadline_s=20, name="the tool")
    called, status, stderr = caught.value.args
    assert (called, status) == ("the tool", 2)
    assert len(stderr) <= process.TAIL_BYTES
    assert "early" not in stderr


def test_failure_without_stderr_carries_stdout() -> None:
    with pytest.raises(CommandFailed, match="said here"):
        run(["sh", "-c", "echo said here; exit 1"], deadline_s=10)


def test_signal_is_a_failure() -> None:
    with pytest.raises(CommandFailed, match="-9"):
        run(["sh", "-c", "kill -9 $$"], deadline_s=10)


@pytest.mark.parametrize("argv", [["gbs-no-such-tool"], ["/no/such/tool", "x"], ["/etc"], ["/etc/passwd"]])
def test_program_that_cannot_start_is_a_failure_that_names_it(argv: list[str]) -> None:
    """A file that is no program ended in a traceback (PermissionError)."""
    with pytest.raises(CommandFailed, match=argv[0]) as caught:
        run(argv, deadline_s=10)
    assert caught.value.args[1] in (126, 127)


def test_deadline_kills_grandchildren_too(tmp_path: Path) -> None:
    script = f"sleep 300 & echo $! > {tmp_path}/pid; echo so far >&2; wait"
    started = time.monotonic()
    with pytest.raises(CommandTimedOut, match=r"killed after 1 s: so far") as caught:
        run(["sh", "-c", script], deadline_s=1)
    assert time.monotonic() - started < 8
    assert caught.value.transient
    assert gone(pid_in(tmp_path / "pid"))


def test_deadline_holds_for_a_program_that_closed_its_outputs() -> None:
    """It was waited for without end."""
    started = time.monotonic()
    with pytest.raises(CommandTimedOut):
        run(["sh", "-c", "exec >&- 2>&-; sleep 300"], deadline_s=1)
    assert time.monotonic() - started < 8


def test_large_input_and_output_pass_at_once() -> None:
    data = os.urandom(1 << 20) * 4
    assert run(["cat"], stdin=data, deadline_s=30).stdout == data


def test_program_that_does_not_read_its_input_ends_well() -> None:
    assert run(["true"], stdin=b"x" * (1 << 20), deadline_s=10).status == 0
    assert run(["cat"], stdin=b"", deadline_s=10).stdout == b""


def test_program_without_input_reads_nothing() -> None:
    assert run(["cat"], deadline_s=10).stdout == b""


def test_output_is_seen_as_it_comes_and_not_kept() -> None:
    seen: list[bytes] = []
    done = run(["sh", "-c", "echo one; sleep 0.2; echo two"], deadline_s=10, on_output=seen.append)
    assert b"".join(seen) == b"one\ntwo\n"
    assert len(seen) == 2
    assert done.stdout == b""


def test_program_is_killed_when_its_reader_fails(tmp_path: Path) -> None:
    def fail(_: bytes) -> None:
        raise RuntimeError("reader")

    with pytest.raises(RuntimeError, match="reader"):
        run(["sh", "-c", f"echo $$ > {tmp_path}/pid; echo x; sleep 300"], deadline_s=60, on_output=fail)
    assert gone(pid_in(tmp_path / "pid"))


def test_output_that_is_no_text_survives() -> None:
    done = run(["printf", "\\377"], deadline_s=10)
    assert done.text.encode("utf-8", "surrogateescape") == b"\xff"


def test_argument_is_never_code(tmp_path: Path) -> None:
    hostile = f"$(touch {tmp_path}/pwned); `id`"
    assert run(["printf", "%s", hostile], deadline_s=10).text == hostile
    assert not (tmp_path / "pwned").exists()


def test_env_is_added_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GBS_ONE", "1")
    assert run(["sh", "-c", "echo $GBS_ONE$GBS_TWO"], deadline_s=10, env={"GBS_TWO": "2"}).text == "12\n"


def test_child_dies_with_its_killed_parent(tmp_path: Path) -> None:
    code = f"""
from tasks.drivers.process import run
run(["sh", "-c", "echo $$ > {tmp_path}/pid; exec sleep 300"], deadline_s=300)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as parent:
        child = pid_in(tmp_path / "pid")
        assert is_alive(child)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    assert gone(child)


def test_watch_is_called_while_a_silent_program_runs_and_what_it_raises_ends_it(tmp_path: Path) -> None:
    looks: list[float] = []
    pid_file = tmp_path / "pid"

    def watch() -> None:
        looks.append(time.monotonic())
        if len(looks) == 2:
            raise CommandFailed("the disk", 1, "filled up")

    began = time.monotonic()
    with pytest.raises(CommandFailed, match="filled up"):
        run(["sh", "-c", f"echo $$ >{pid_file}; sleep 60"], deadline_s=60, watch=watch)
    assert len(looks) == 2
    assert time.monotonic() - began < 30
    assert gone(pid_in(pid_file))
