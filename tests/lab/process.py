"""A process that outlives the one that started it: named by pid, boot and start time, ended through a pidfd."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
from pathlib import Path


class LabError(RuntimeError):
    """Something of the lab did not work; the message says what and where to look."""


def boot_id() -> str:
    """The kernel's id of the current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _start_ticks(pid: int) -> int | None:
    """Start time of a live process in clock ticks since boot (proc(5), stat field 22); None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name (field 2) may hold spaces and parentheses, so count from its closing one.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


@dataclasses.dataclass(frozen=True)
class ProcessRecord:
    """What is needed to find a process again and to be sure that it is the same one."""

    pid: int
    start_ticks: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessRecord:
        """Record a live process; LabError when it has ended."""
        ticks = _start_ticks(pid)
        if ticks is None:
            raise LabError(f"process {pid} ended as it was started")
        return cls(pid, ticks, boot_id())

    @classmethod
    def load(cls, path: Path) -> ProcessRecord | None:
        """Read a record that `save` wrote; None when there is none or a crash left it empty."""
        try:
            return cls(**json.loads(path.read_text(encoding="ascii")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def save(self, path: Path) -> None:
        """Write the record atomically."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(dataclasses.asdict(self)), encoding="ascii")
        partial.rename(path)

    def alive(self) -> bool:
        """Whether that very process (not another one that got its pid) still runs."""
        return self.boot == boot_id() and _start_ticks(self.pid) == self.start_ticks

    def kill(self, deadline_s: float = 30.0) -> bool:
        """SIGKILL it and wait until it has gone; False when it had gone before. LabError past the deadline."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # The pidfd is held first: after this check the pid cannot come to name another process.
            if not self.alive():
                return False
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            if not select.select([descriptor], [], [], deadline_s)[0]:
                raise LabError(f"process {self.pid} is still there {deadline_s:.0f} s after SIGKILL")
            return True
        finally:
            os.close(descriptor)
