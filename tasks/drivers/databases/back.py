"""A declared engine's dumps, which came back with the files, loaded on the system that they are of."""

import time
from collections.abc import Sequence
from pathlib import PurePosixPath

from tasks.drivers import databases
from tasks.drivers.databases import command
from tasks.drivers.host_shell import SystemShell
from tasks.errors import RestoreFailed
from tasks.model.databases import Server
from tasks.model.inventory_systems import System
from tasks.model.manifest import DumpRecord

READY_DEADLINE_S = 300


def bring_back(shell: SystemShell, system: System, called: str, dumps: Sequence[DumpRecord], deadline_s: float) -> None:
    """Load the dumps of one engine or command, `called` so; an engine is waited for until it accepts connections.

    RestoreFailed when it does not, when the inventory no longer declares it, or when a dump does not load.
    """
    declared = next((database for database in system.databases if database.called == called), None)
    if declared is None:
        folder = PurePosixPath(dumps[0].path).parent
        reason = f"the inventory no longer declares it; its dumps are in {folder}"
        raise RestoreFailed(f"{called} on {shell.name}", reason)
    if declared.engine == "command":
        command.restore(shell, declared.dump_command, dumps, deadline_s)
    else:
        _wait_for(shell, declared.server)
        databases.restore(shell, declared.server, dumps, deadline_s)


def names_of(dumps: Sequence[DumpRecord]) -> tuple[str, ...]:
    """What people read of dumps that were loaded."""
    return tuple(f"{dump.engine} {dump.database or dump.kind}" for dump in dumps)


def _wait_for(shell: SystemShell, server: Server) -> None:
    ends_at = time.monotonic() + READY_DEADLINE_S
    while not databases.is_ready(shell, server):
        if time.monotonic() > ends_at:
            called = f"{server.engine} on {shell.name}"
            raise RestoreFailed(called, f"it does not accept connections after {READY_DEADLINE_S} s")
        time.sleep(2)
