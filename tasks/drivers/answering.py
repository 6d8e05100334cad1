"""Calls that touch a file system which may not answer, made by a child that can be killed.

Whoever touches an NFS mount (`hard`, as it must be) whose server is gone sleeps in the kernel and wakes for SIGKILL
only (nfs(5)): a thread of ours would hold its client's turn for ever. The child is started by the first call and kept
for the next ones; a call that passes its deadline ends it, and with it all that waits for the same server.
"""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import count
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from tasks.drivers import process

PROBE_EVERY_S = 5
_AT_ONCE = 16
P = ParamSpec("P")
T = TypeVar("T")


class NoAnswer(Exception):
    """A call did not return before its deadline, or the child that made it is gone."""


class _Child:
    """A child that makes calls; a thread of its own starts it and reads its answers."""

    def __init__(self) -> None:
        self._waiting: dict[int, Future[Any]] = {}
        self._numbers = count()
        self._sending = threading.Lock()
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        self._ended = False
        self._started: Future[subprocess.Popen[bytes]] = Future()
        # A child dies with the thread that started it: this one lives as long as the child.
        threading.Thread(target=self._live, args=(theirs,), name="answering", daemon=True).start()
        self._process = self._started.result()

    @property
    def alive(self) -> bool:
        return not self._ended and self._process.poll() is None

    def begin(self, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[T]:
        answer: Future[T] = Future()
        with self._sending:
            number = next(self._numbers)
            self._waiting[number] = answer
            try:
                self._connection.send((number, function, args, kwargs))
            except OSError as exc:
                raise NoAnswer(str(exc)) from exc
        return answer

    def end(self) -> None:
        """Kill it; who sleeps in the kernel may take a while to go, and is not waited for."""
        self._ended = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _live(self, theirs: socket.socket) -> None:
        argv = [sys.executable, "-m", __name__, str(theirs.fileno())]
        try:
            with theirs:
                self._started.set_result(process.spawn(argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL))
        except OSError as exc:
            self._started.set_exception(exc)
            return
        # Whatever ends this, nobody may wait for ever; some answers cannot be read back.
        with contextlib.suppress(Exception):
            while True:
                number, good, value = self._connection.recv()
                answer = self._waiting.pop(number)
                answer.set_result(value) if good else answer.set_exception(value)
        self.end()
        with self._sending:
            self._connection.close()
            left = list(self._waiting.values())
        for answer in left:
            answer.set_exception(NoAnswer("what it waited for did not answer another call"))
        self._process.wait()


_lock = threading.Lock()
_child: _Child | None = None


def ask(function: Callable[P, T], deadline_s: float, *args: P.args, **kwargs: P.kwargs) -> T:
    """What a module's function returns or raises, called in the child; NoAnswer after `deadline_s` seconds.

    Arguments and results are copies. Calls are made side by side.
    """
    child = _kept()
    answer = child.begin(function, args, kwargs)
    if not wait([answer], deadline_s).done:
        child.end()
        raise NoAnswer(f"no answer within {deadline_s:g} s")
    return answer.result()


def attend(function: Callable[P, T], probe: Callable[[], None], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `ask`, for as long as `probe`, called every PROBE_EVERY_S seconds meanwhile, raises nothing."""
    answer = _kept().begin(function, args, kwargs)
    while not wait([answer], PROBE_EVERY_S).done:
        probe()
    return answer.result()


def _kept() -> _Child:
    global _child  # noqa: PLW0603 - one for the process, as the mounts are
    with _lock:
        if _child is None or not _child.alive:
            _child = _Child()
        return _child


def _serve(connection: Connection) -> None:
    """Answer until nobody asks any more."""
    sending = threading.Lock()

    def answer(number: int, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            good, value = True, function(*args, **kwargs)
        except Exception as exc:  # noqa: BLE001 - it is raised where it was asked for
            good, value = False, exc
        with sending:
            try:
                connection.send((number, good, value))
            except (pickle.PicklingError, TypeError, AttributeError) as exc:
                connection.send((number, False, RuntimeError(f"{value!r} cannot be passed on: {exc}")))

    with ThreadPoolExecutor(_AT_ONCE) as pool, contextlib.suppress(EOFError):
        while True:
            pool.submit(answer, *connection.recv())


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
