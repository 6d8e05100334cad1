"""`gbs apply` and `gbs deploy`: bring the Prefect server in line with the inventory."""

from pathlib import Path

import click

from flows.cli import terminal
from flows.cli.inventory import file_option
from tasks import declaration


@click.command("apply")
@file_option
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@terminal.json_option
def apply_command(path: Path | None, dry_run: bool, as_json: bool) -> None:
    """Make Prefect's blocks from the inventory; run it again after every change of the inventory."""
    changes = declaration.apply(declaration.load(path), dry_run=dry_run)
    body = [(change.document, change.kind, change.action, " ".join(change.fields)) for change in changes]
    terminal.rows("blocks" + (" (dry run)" if dry_run else ""), ("block", "type", "action", "fields"), body, as_json)
