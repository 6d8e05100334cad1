"""Mutual exclusion by flock(2): it ends with its holder, so no lock is ever stale."""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tasks.errors import Locked

POLL_S = 1.0
LOOKED_AT_S = 0.05
"""Who looks whether a lock is held has it for a moment (`is_held`)."""
TURN_S = 120.0
_log = logging.getLogger(__name__)


@contextmanager
def hold(path: Path, what: str, run: str = "") -> Iterator[None]:
    """Hold the lock `path` for `what`; raises Locked, naming the holder, when another process or thread has it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(handle, path, what)
        os.ftruncate(handle, 0)
        holder = {"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds"), "run": run}
        os.pwrite(handle, json.dumps(holder).encode(), 0)
        yield
    finally:
        # Not by closing alone: a child that another thread has forked and that is not yet at its exec has a copy of the
        # handle, which would keep the lock for some milliseconds, and our next stage would find it locked by ourselves.
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _take(handle: int, path: Path, what: str) -> None:
    ends_at = time.monotonic() + LOOKED_AT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as exc:
            if time.monotonic() > ends_at:
                raise Locked(what, _holder(path)) from exc
        time.sleep(0.002)


def turn(path: Path, what: str) -> AbstractContextManager[None]:
    """Hold a lock that nobody holds for long, waiting for it; Locked when that takes too long."""
    return one_of([path], what, wait_s=TURN_S)


def is_held(path: Path) -> bool:
    """Whether another process or thread has the lock now."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # as in `hold`
        os.close(handle)
    return False


@contextmanager
def one_of(paths: Sequence[Path], what: str, run: str = "", *, wait_s: float) -> Iterator[None]:
    """Hold one of several locks, waiting for it; raises Locked when none got free within `wait_s`."""
    ends_at, told = time.monotonic() + wait_s, False
    while True:
        for path in paths:
            with ExitStack() as stack:
                try:
                    stack.enter_context(hold(path, what, run))
                except Locked:
                    if path != paths[-1]:
                        continue
                    if time.monotonic() > ends_at:
                        raise
                    break
                yield
                return
        if not told:
            _log.info("%s: waiting for one of %d", what, len(paths))
            told = True
        time.sleep(POLL_S)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"pid {holder['pid']} since {holder['since']}" + (f" ({holder['run']})" if holder["run"] else "")
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown process"
