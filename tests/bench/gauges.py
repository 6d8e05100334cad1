"""What is measured of work: seconds by the clock, and the memory of a process and of its children."""

from __future__ import annotations

import dataclasses
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

SAMPLE_S = 0.25


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` took."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


@dataclasses.dataclass
class Memory:
    """The most that a process had resident, and the most that all its children had at one moment, in MiB."""

    own_mib: float = 0.0
    children_mib: float = 0.0


def memory_of(process: subprocess.Popen[bytes]) -> Memory:
    """Wait for a process; its memory, seen four times a second (pages that children share are counted for each)."""
    found, ended = Memory(), threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLE_S):
            # VmHWM is the peak, not the moment's value: nothing is missed between two looks.
            found.own_mib = max(found.own_mib, _status_mib(process.pid, "VmHWM"))
            children = sum(_status_mib(pid, "VmRSS") for pid in _descendants(process.pid))
            found.children_mib = max(found.children_mib, children)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        process.wait()
    finally:
        ended.set()
        thread.join()
    return found


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    pending = [pid]
    while pending:
        try:
            listed = [path.read_text() for path in Path(f"/proc/{pending.pop()}/task").glob("*/children")]
        except OSError:  # it has ended
            continue
        pids = [int(word) for text in listed for word in text.split()]
        found += pids
        pending += pids
    return found


def _status_mib(pid: int, field: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), 0.0)
