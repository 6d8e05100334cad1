"""Stage 0 on one client: its facts and its database dumps."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from tasks import places
from tasks.drivers import databases, facts, platform_facts, ssh
from tasks.drivers.databases import command as dump_command
from tasks.drivers.progress import reporting
from tasks.drivers.store import read_model, write_model
from tasks.model.databases import DumpCommand, EngineName, Server
from tasks.model.facts import Facts
from tasks.model.manifest import DumpRecord
from tasks.model.platform import Platform
from tasks.model.prepared import Prepared
from tasks.retryable import retryable

log = logging.getLogger(__name__)


@retryable("facts", "facts of {client}")
def collect_facts(client: str) -> Facts:
    """What the client's own tools say of its disks, file systems and system."""
    system, _ = places.system_of(client)
    if not system.ssh:
        return platform_facts.nameless(system.platform, datetime.now(UTC))
    with ssh.connect(places.target_of(client)) as shell, reporting(log, f"facts of {client}"):
        if system.platform is Platform.LINUX:
            return facts.collect(shell, datetime.now(UTC))
        return platform_facts.collect(shell, system.platform, datetime.now(UTC))


@retryable("look for databases", "look for databases of {client}")
def running_engines(client: str) -> set[EngineName]:
    """The engines of which a Linux client runs a server, whether it is declared or not."""
    system, _ = places.system_of(client)
    if system.platform is not Platform.LINUX or not system.ssh:
        return set()
    with ssh.connect(places.target_of(client)) as shell:
        return databases.running_engines(shell)


@retryable("list databases", "list {server.engine} of {client}")
def list_databases(client: str, server: Server, names: Sequence[str] = ()) -> dict[str, int]:
    """The bytes of each database of a running server; DumpFailed when it does not answer."""
    with ssh.connect(places.target_of(client)) as shell:
        return databases.list_databases(shell, server, names)


@retryable("dump database", "dump {server.engine} {database} of {client}")
def dump_database(client: str, server: Server, database: str, size_bytes: int) -> DumpRecord:
    """One database's dump in the client's dump folder, proven whole."""
    system, policy = places.system_of(client)
    called = f"dump {server.engine} {database} of {client}"
    with ssh.connect(places.target_of(client)) as shell, reporting(log, called):
        return databases.dump_database(shell, server, database, size_bytes, system.dump_folder, policy.dump_deadline_s)


@retryable("dump accounts", "dump {server.engine} accounts of {client}")
def dump_accounts(client: str, server: Server) -> DumpRecord | None:
    """The roles or users of a server, in the client's dump folder; None for an engine without."""
    system, policy = places.system_of(client)
    with ssh.connect(places.target_of(client)) as shell, reporting(log, f"dump {server.engine} accounts of {client}"):
        return databases.dump_accounts(shell, server, system.dump_folder, policy.dump_deadline_s)


@retryable("dump by command", "dump {asked.label} of {client}", retries=0)
def dump_by_command(client: str, asked: DumpCommand, last_size_bytes: int) -> tuple[DumpRecord, ...]:
    """What a command of the operator's made in the client's dump folder; as large as last time must fit."""
    system, policy = places.system_of(client)
    with ssh.connect(places.target_of(client)) as shell, reporting(log, f"dump {asked.label} of {client}"):
        return dump_command.dump(shell, asked, last_size_bytes, system.dump_folder, policy.dump_deadline_s)


def last_prepared(client: str) -> Prepared | None:
    """What the last stage 0 left; None when there was none."""
    return read_model(places.store().prepared(client), Prepared)


def record(prepared: Prepared) -> None:
    """Keep what stage 0 found and made for stage 1."""
    write_model(places.store().prepared(prepared.client), prepared)
