"""Stage 0, backup preparation: on each client, facts and database dumps."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from prefect import State, flow

from flows.ending import conclude
from flows.run_name import named
from flows.side_by_side import chosen, for_each_client, task_runner, together
from flows.stage import Stage, stage
from flows.vm_name import ClientName
from tasks import places, preparation
from tasks.errors import GbsError
from tasks.model.inventory import Database
from tasks.model.manifest import DumpRecord
from tasks.model.outcome import Outcome, StageResult
from tasks.model.prepared import Prepared


def prepare_client(client: str) -> list[StageResult]:
    """Stage 0 of one client; a database that cannot be dumped makes it PARTIAL, and the rest goes on."""
    started = datetime.now(UTC)
    with stage(client, "prepare") as running:
        system, _ = places.system_of(client)
        facts = preparation.collect_facts(client)
        dumps = together([partial(_dump_engine, client, database, running) for database in system.databases])
        made = tuple(dump for engine in dumps for dump in engine)
        running.bytes_moved = sum(dump.size_bytes for dump in made)
        preparation.record(
            Prepared(
                client=client,
                started=started,
                ended=datetime.now(UTC),
                facts=facts,
                dumps=made,
                failures=tuple(running.reasons),
            )
        )
    return [running.result()]


def _dump_engine(client: str, database: Database, running: Stage) -> list[DumpRecord]:
    """The dumps of one engine: its databases one after the other, its accounts beside them."""
    engine = database.engine

    def attempt(dump: Callable[[], DumpRecord]) -> list[DumpRecord]:
        try:
            return [dump()]
        except GbsError as exc:
            running.say(Outcome.PARTIAL, str(exc))
            return []

    def dump_databases() -> list[DumpRecord]:
        # A name that the server does not list is tried all the same: the dump's own error says best what is wrong.
        works = [
            partial(preparation.dump_database, client, engine, name, sizes.get(name, 0))
            for name in database.names or sizes
        ]
        return [dump for work in works for dump in attempt(work)]

    try:
        sizes = preparation.list_databases(client, engine)
    except GbsError as exc:
        running.say(Outcome.PARTIAL, str(exc))
        return []
    accounts, dumps = together([lambda: attempt(partial(preparation.dump_accounts, client, engine)), dump_databases])
    return accounts + dumps


@flow(name="prepare", flow_run_name=named("clients", "prepare of {}", "all clients"), task_runner=task_runner)
def prepare(clients: list[ClientName] | None = None) -> State[list[StageResult]]:
    """Stage 0 for the named clients, or all: facts, and database dumps into a local folder of each client.

    Args:
        clients: The clients and KVM hosts, as the inventory names them. None means all of them.
    """
    return conclude("prepare", for_each_client(prepare_client, chosen(clients)))
