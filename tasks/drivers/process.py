"""Run an external program: an argv, a deadline, its own session, and an end with its parent.

A child of ours never outlives us: it gets SIGKILL when the thread that started it ends (setpriv(1) asks for that, see
PR_SET_PDEATHSIG in prctl(2)), because Prefect's own SIGKILL runs no `finally`. Nothing here ever uses a shell.

setpriv, and not a function between fork and exec: so Python can use vfork, which copies no page tables. For a flow with
many clients that is a fifth of its processor time (docs/performance.md). A parent that dies in the millisecond before
setpriv has asked leaves a child that goes on.
"""

import contextlib
import errno
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tasks.errors import CommandFailed, CommandTimedOut

TAIL_BYTES = 4000
WATCH_EVERY_S = 1.0
GATHER_BYTES, GATHER_S = 4096, 0.02
"""Output that comes a few bytes at a time may gather: rsync tells its progress after every file."""
Watch = Callable[[], None]
DYING_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
"""Before an argv: the program gets SIGKILL when the thread that started it ends."""


@dataclass(frozen=True)
class Finished:
    """What a program that ended left: its exit status, its standard output, the end of its standard error."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: str
    cut: bool = False
    """Whether there was more on standard error, before what is here."""

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 survive as surrogates."""
        return self.stdout.decode("utf-8", "surrogateescape")


def spawn(argv: Sequence[str], *, env: Mapping[str, str] | None = None, **popen: object) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own that dies with us; the caller ends it. OSError when it cannot be started."""
    environment = {**os.environ, **(env or {})}
    if shutil.which(argv[0], path=environment.get("PATH")) is None:
        reason = errno.EACCES if os.path.exists(argv[0]) else errno.ENOENT
        raise OSError(reason, os.strerror(reason), argv[0])
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [*DYING_WITH_PARENT, *argv], env=environment, start_new_session=True, **popen
    )


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the program and all that it started in its session; reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def no_room(said: str) -> str | None:
    """What a program said of a file system that is full, in bytes, inodes or by a quota; None when it did not."""
    words = map(os.strerror, (errno.ENOSPC, errno.EDQUOT))
    return next((text for text in words if text in said), None)


def run(
    argv: Sequence[str],
    *,
    deadline_s: float,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    accept: Callable[[int], bool] = lambda status: status == 0,
    on_output: Callable[[bytes], None] | None = None,
    watch: Watch | None = None,
    name: str | None = None,
) -> Finished:
    """Run `argv` to its end and return what it left; `on_output` sees standard output as it comes.

    `watch` is called about every second meanwhile; what it raises ends the program and goes to the caller.

    Raises CommandTimedOut after `deadline_s` (the whole session is killed) and CommandFailed when `accept(status)` is
    false or the program does not exist. `name` is what messages call it (default: the first words of argv).
    """
    called = name or shlex.join(argv[:3])
    try:
        process = spawn(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as exc:
        raise CommandFailed(called, 127, f"{exc.filename} is not installed") from exc
    except OSError as exc:
        raise CommandFailed(called, 126, f"{argv[0]} cannot be started: {exc.strerror}") from exc
    try:
        ends_at = time.monotonic() + deadline_s
        stdout, err = _communicate(process, stdin, ends_at, on_output, watch)
        stderr = _tail(err)
        status = _wait(process, ends_at, stderr)
    except TimeoutError as exc:
        kill_session(process)
        raise CommandTimedOut(called, deadline_s, str(exc)) from None
    finally:
        if process.poll() is None:
            kill_session(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
    if not accept(status):
        raise CommandFailed(called, status, stderr or stdout[-TAIL_BYTES:].decode("utf-8", "replace").strip())
    return Finished(tuple(argv), status, stdout, stderr, cut=len(err) > TAIL_BYTES)


def _communicate(
    process: subprocess.Popen[bytes],
    stdin: bytes | None,
    ends_at: float,
    on_output: Callable[[bytes], None] | None,
    watch: Watch | None,
) -> tuple[bytes, bytearray]:
    """Feed and drain the pipes until both outputs close; TimeoutError carries the end of standard error.

    Of standard error more than TAIL_BYTES are returned when there were more.
    """
    assert process.stdout is not None  # noqa: S101 - both are pipes: `run` asked for them
    assert process.stderr is not None  # noqa: S101
    out, err = bytearray(), bytearray()
    pending = memoryview(stdin or b"")
    next_watch = time.monotonic() + WATCH_EVERY_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, out)
        selector.register(process.stderr, selectors.EVENT_READ, err)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE, None)
        while selector.get_map():
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(_tail(err))
            if watch is not None and time.monotonic() >= next_watch:
                watch()
                next_watch = time.monotonic() + WATCH_EVERY_S
            for key, _ in selector.select(left_s if watch is None else min(left_s, WATCH_EVERY_S)):
                pipe: IO[bytes] = key.fileobj  # type: ignore[assignment]
                if key.data is None:
                    pending = _feed(selector, pipe, pending)
                    continue
                chunk = os.read(pipe.fileno(), 65536)
                if not chunk:
                    selector.unregister(pipe)
                elif key.data is out and on_output is not None:
                    on_output(chunk)
                    if len(chunk) < GATHER_BYTES:
                        time.sleep(GATHER_S)
                else:
                    key.data.extend(chunk)
                if key.data is err and len(err) > 16 * TAIL_BYTES:
                    del err[: -8 * TAIL_BYTES]
    return bytes(out), err


def _wait(process: subprocess.Popen[bytes], ends_at: float, stderr: str) -> int:
    """The exit status; a program may close its outputs and go on."""
    try:
        return process.wait(max(0.1, ends_at - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError(stderr) from None


def _feed(selector: selectors.BaseSelector, pipe: IO[bytes], pending: memoryview) -> memoryview:
    try:
        pending = pending[os.write(pipe.fileno(), pending[:65536]) :]
    except BrokenPipeError:
        pending = memoryview(b"")
    if not pending:
        selector.unregister(pipe)
        pipe.close()
    return pending


def _tail(stderr: bytearray) -> str:
    return stderr[-TAIL_BYTES:].decode("utf-8", "replace").strip()
