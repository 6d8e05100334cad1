"""One database, back from a night's dump: to its client or another, under its name or another."""

import logging
from contextlib import ExitStack
from datetime import UTC, datetime

from prefect import flow

from flows.run_name import of_database
from flows.vm_name import ClientName
from tasks import database_recovery, nights, places
from tasks.errors import GbsError
from tasks.model.database_recovery import RecoveredDatabase, dump_of
from tasks.model.names import new_id

log = logging.getLogger(__name__)


@flow(name="recover-database", flow_run_name=of_database)
def recover_database(
    client: ClientName,
    database: str,
    night: str = "latest",
    to: ClientName | None = None,
    name: str | None = None,
    engine: str | None = None,
    replace: bool = False,
    dry_run: bool = False,
) -> RecoveredDatabase:
    """Load a database from the dump of a night; one of that name that is there refuses the run.

    Args:
        client: The client whose database it was.
        database: The database, as its engine names it.
        night: latest, overnight, daily.N, an id, or a date (YYYY-MM-DD).
        to: The client to load it on. None means the one that had it.
        name: What it is called there. None means as it was.
        engine: Which engine's, when two have one of that name.
        replace: Put one of that name that is there aside: renamed where the engine can, else as a dump.
        dry_run: Only say what would be loaded and whether one is there.
    """
    chosen = nights.choose_night(client, night)
    dump = dump_of(chosen.manifest, database, engine)
    aim = database_recovery.aim_at(client, chosen, dump, to or client, name or database, new_id(datetime.now(UTC)))
    there = database_recovery.exists(aim)
    result = RecoveredDatabase(
        client=client,
        night=chosen.manifest.id,
        engine=dump.engine,
        database=database,
        size_bytes=dump.size_bytes,
        to=aim.client,
        name=aim.name,
        exists=there,
        expected_tables=dump.tables,
        dry_run=dry_run,
    )
    if dry_run:
        return result
    if there and not replace:
        raise database_recovery.in_the_way(aim)
    with ExitStack() as stack:
        for system in {client, aim.client}:
            stack.enter_context(places.locked("client", system))
        stack.enter_context(places.connections_kept())
        try:
            with nights.opened(chosen) as folder:
                sent = database_recovery.send(folder, dump, aim)
            # It may have come meanwhile: what is done with it is decided by what is there now.
            tables, aside = database_recovery.load(sent, aim, replace=replace)
        finally:
            left = _remove(aim)
    log.info("%s on %s has %d tables", aim.name, aim.client, tables)
    found = {"exists": aside is not None, "tables": tables, "kept_aside": aside, "warnings": left}
    return result.model_copy(update=found)


def _remove(aim: database_recovery.Aim) -> tuple[str, ...]:
    """What is left of the dump that was sent, in words: it must not hide how the load ended."""
    try:
        database_recovery.remove(aim)
    except GbsError as exc:
        log.warning("the dump that was sent is left on %s: %s", aim.client, exc)
        return (f"the dump that was sent is left on {aim.client}: {exc}",)
    return ()
