"""What stage 0 found and made on a client; stage 1 takes it from here."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from tasks.model.facts import Facts
from tasks.model.inventory_systems import System
from tasks.model.manifest import DumpRecord


class Prepared(BaseModel):
    """The facts and dumps of one client, and what could not be dumped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    client: str
    started: datetime
    ended: datetime
    facts: Facts
    dumps: tuple[DumpRecord, ...] = ()
    failures: tuple[str, ...] = ()
    uncovered: tuple[str, ...] = ()
    """The declared engines and commands of which not everything was dumped (Database.called)."""
    undeclared: tuple[str, ...] = ()
    """Servers and databases that were found and that nobody declared, a line each."""

    def covered(self, called: str) -> bool:
        """Whether every declared database of an engine was dumped, so that its data files may be left out."""
        return called not in self.uncovered and any(dump.called == called for dump in self.dumps)


def paths_of(system: System, prepared: Prepared) -> tuple[str, ...]:
    """What is pulled: the declared paths, or every local file system of the facts."""
    return system.paths or tuple(row.mountpoint for row in prepared.facts.file_systems)


def shrunk(before: Sequence[DumpRecord], now: Sequence[DumpRecord], max_shrink_percent: int) -> list[str]:
    """A line for each dump that lost more than that part of its bytes since last time."""
    last = {dump.path: dump.size_bytes for dump in before}
    return [
        f"{dump.called} {dump.database}: its dump shrank from {last[dump.path]} to {dump.size_bytes} bytes"
        for dump in now
        if dump.size_bytes * 100 < last.get(dump.path, 0) * (100 - max_shrink_percent)
    ]
