"""`gbs recover database`."""

import click

from flows.cli import terminal
from tasks.model.names import human_bytes


@click.command("database", short_help="A database from a night's dump.")
@click.argument("client")
@click.argument("name", metavar="DB")
@click.option("--from", "night", default="latest", show_default=True, help="latest, daily.N, an id or YYYY-MM-DD.")
@click.option("--to", metavar="CLIENT", help="Another client that has such a server.")
@click.option("--as", "other", metavar="NAME", help="Another name than it had.")
@click.option("--engine", help="Which engine's, when two have one of that name.")
@click.option("--replace", is_flag=True, help="Put the one that is there aside: renamed, or as a dump.")
@click.option("--dry-run", is_flag=True, help="Say what would be loaded and whether one is there; change nothing.")
@terminal.json_option
def database(
    client: str,
    name: str,
    night: str,
    to: str | None,
    other: str | None,
    engine: str | None,
    replace: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Load the database DB of CLIENT from the dump of a night; what is there is never overwritten without --replace.

    PostgreSQL, MariaDB and SQLite (DB is the file). Of the others it says what to do by hand.
    """
    from flows.recover_database import recover_database

    done = recover_database(client, name, night, to, other, engine, replace, dry_run)
    if as_json:
        print(done.model_dump_json(indent=1))
        return
    dump = f"{done.engine} {done.database} of {done.client}, night {done.night}, {human_bytes(done.size_bytes)}"
    if done.dry_run:
        there = "there is one already, see --replace and --as" if done.exists else "there is none"
        terminal.out.print(f"{dump}: would be loaded on {done.to} as {done.name}; {there}", markup=False)
        terminal.out.print("dry run: nothing was changed")
        return
    counted = f"{done.tables} tables" + (", as in the night's proof" if done.expected_tables is not None else "")
    terminal.out.print(f"{dump}: loaded on {done.to} as {done.name}, {counted}", markup=False)
    if done.kept_aside:
        terminal.out.print(f"the old one is kept as {done.kept_aside}", markup=False)
    for warning in done.warnings:
        terminal.out.print(f"warning: {warning}", style="yellow", markup=False)
