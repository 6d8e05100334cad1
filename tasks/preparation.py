"""Stage 0 on one client: its facts and its database dumps."""

import logging
from datetime import UTC, datetime

from tasks import places
from tasks.drivers import databases, facts, ssh
from tasks.drivers.databases import EngineName
from tasks.drivers.progress import reporting
from tasks.drivers.store import write_model
from tasks.model.facts import Facts
from tasks.model.manifest import DumpRecord
from tasks.model.prepared import Prepared
from tasks.retryable import retryable

log = logging.getLogger(__name__)


@retryable("facts", "facts of {client}")
def collect_facts(client: str) -> Facts:
    """What the client's own tools say of its disks, file systems and system."""
    with ssh.connect(places.target_of(client)) as shell, reporting(log, f"facts of {client}"):
        return facts.collect(shell, datetime.now(UTC))


@retryable("list databases", "list {engine} of {client}")
def list_databases(client: str, engine: EngineName) -> dict[str, int]:
    """The bytes of each database of a running server; DumpFailed when it does not answer."""
    with ssh.connect(places.target_of(client)) as shell:
        return databases.list_databases(shell, engine)


@retryable("dump database", "dump {engine} {database} of {client}")
def dump_database(client: str, engine: EngineName, database: str, size_bytes: int) -> DumpRecord:
    """One database's dump in the client's dump folder, proven whole."""
    system, policy = places.system_of(client)
    with ssh.connect(places.target_of(client)) as shell, reporting(log, f"dump {engine} {database} of {client}"):
        return databases.dump_database(shell, engine, database, size_bytes, system.dump_folder, policy.dump_deadline_s)


@retryable("dump accounts", "dump {engine} accounts of {client}")
def dump_accounts(client: str, engine: EngineName) -> DumpRecord:
    """The roles or users of a server, in the client's dump folder."""
    system, policy = places.system_of(client)
    with ssh.connect(places.target_of(client)) as shell, reporting(log, f"dump {engine} accounts of {client}"):
        return databases.dump_accounts(shell, engine, system.dump_folder, policy.dump_deadline_s)


@retryable("record preparation", "record preparation of {prepared.client}", retries=0)
def record(prepared: Prepared) -> None:
    """Keep what stage 0 found and made for stage 1."""
    write_model(places.store().prepared(prepared.client), prepared)
