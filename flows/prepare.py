"""Stage 0, backup preparation: on each client, facts and database dumps."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

from prefect import State, flow

from flows.ending import conclude
from flows.hooked import hooked
from flows.run_name import named
from flows.side_by_side import chosen, for_each_client, task_runner, together
from flows.snapshotted import remove_snapshots
from flows.stage import Stage, stage
from flows.vm_name import ClientName
from tasks import places, preparation
from tasks.errors import GbsError
from tasks.model.inventory_databases import Database
from tasks.model.inventory_systems import System
from tasks.model.manifest import DumpRecord
from tasks.model.outcome import Outcome, StageResult
from tasks.model.prepared import Prepared, shrunk


def prepare_client(client: str) -> list[StageResult]:
    """Stage 0 of one client; a database that cannot be dumped makes it PARTIAL, and the rest goes on."""
    started = datetime.now(UTC)
    with stage(client, "prepare") as running, hooked(running):
        system, policy = places.system_of(client)
        remove_snapshots(running)  # those that a run left would be among the facts
        facts, last = preparation.collect_facts(client), preparation.last_prepared(client)
        before = last.dumps if last else ()
        dumpings = [_Dumping(client, database, running, before) for database in system.databases]
        made = tuple(dump for dumps in together([dumping.run for dumping in dumpings]) for dump in dumps)
        undeclared = (*_other_engines(client, system), *(line for dumping in dumpings for line in dumping.undeclared))
        for line in (*facts.unread, *undeclared, *shrunk(before, made, policy.max_shrink_percent)):
            running.say(Outcome.WARNING, line)
        running.bytes_moved = sum(dump.size_bytes for dump in made)
        preparation.record(
            Prepared(
                client=client,
                started=started,
                ended=datetime.now(UTC),
                facts=facts,
                dumps=made,
                failures=tuple(words for dumping in dumpings for words in dumping.failures),
                undeclared=undeclared,
                uncovered=tuple(dumping.database.called for dumping in dumpings if dumping.left_out),
            )
        )
    return [running.result()]


def _other_engines(client: str, system: System) -> list[str]:
    """Which servers run there that nobody declared."""
    others = preparation.running_engines(client) - {row.engine for row in system.databases}
    return [f"it runs {engine}, which the inventory does not declare: nothing dumps it" for engine in sorted(others)]


class _Dumping:
    """The dumps of one engine: its databases one after the other, its accounts beside them."""

    def __init__(self, client: str, database: Database, running: Stage, before: Sequence[DumpRecord]) -> None:
        self.client, self.database, self.running, self.before = client, database, running, before
        self.failures: list[str] = []
        self.undeclared: list[str] = []

    @property
    def left_out(self) -> bool:
        """Whether something of the engine is in no dump, so that its data files must be pulled."""
        return bool(self.failures or self.undeclared)

    def run(self) -> list[DumpRecord]:
        """What could be dumped; what could not is said."""
        if self.database.engine == "command":
            return self._attempt(self._by_command)
        server, names = self.database.server, self.database.names
        try:
            sizes = preparation.list_databases(self.client, server, names)
        except GbsError as exc:
            self._say(exc)
            return []
        others = sorted(set(sizes) - {*names, "postgres"}) if names else []
        self.undeclared = [f"{server.engine} has a database {name!r} that is not declared" for name in others]
        accounts, dumps = together([self._accounts, lambda: self._databases(sizes)])
        return accounts + dumps

    def _databases(self, sizes: dict[str, int]) -> list[DumpRecord]:
        # A name that the server does not list is tried all the same: the dump's own error says best what is wrong.
        made: list[DumpRecord] = []
        for name in self.database.names or sizes:
            made += self._attempt(partial(self._one, name, sizes.get(name, 0)))
        return made

    def _one(self, name: str, size_bytes: int) -> list[DumpRecord]:
        return [preparation.dump_database(self.client, self.database.server, name, size_bytes)]

    def _accounts(self) -> list[DumpRecord]:
        def dump() -> list[DumpRecord]:
            made = preparation.dump_accounts(self.client, self.database.server)
            return [made] if made else []

        return self._attempt(dump)

    def _by_command(self) -> Sequence[DumpRecord]:
        asked = self.database.dump_command
        last_size = sum(dump.size_bytes for dump in self.before if dump.called == self.database.called)
        return preparation.dump_by_command(self.client, asked, last_size)

    def _attempt(self, dump: Callable[[], Sequence[DumpRecord]]) -> list[DumpRecord]:
        try:
            return list(dump())
        except GbsError as exc:
            self._say(exc)
            return []

    def _say(self, error: GbsError) -> None:
        self.failures.append(str(error))
        self.running.say(Outcome.PARTIAL, str(error))


@flow(name="prepare", flow_run_name=named("clients", "prepare of {}", "all clients"), task_runner=task_runner)
def prepare(clients: list[ClientName] | None = None) -> State[list[StageResult]]:
    """Stage 0 for the named clients, or all: facts, and database dumps into a local folder of each client.

    Args:
        clients: The clients and KVM hosts, as the inventory names them. None means all of them.
    """
    places.require_store()
    return conclude("prepare", for_each_client(prepare_client, chosen(clients)))
