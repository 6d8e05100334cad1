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


@click.command("deploy")
@click.option(
    "--prefect-file",
    type=click.Path(path_type=Path),
    help="Another file than the prefect.yaml beside the flows.",
)
@terminal.json_option
def deploy_command(prefect_file: Path | None, as_json: bool) -> None:
    """Make the work pool and the deployments on the server of PREFECT_API_URL; run it again after every change.

    The lists of VMs and clients in the run forms are those of the inventory as it is now.
    """
    from tasks import deployment

    found = deployment.deploy(terminal.PREFECT_DEFAULTS, prefect_file)
    body = [(each.name, each.kind, each.action, " ".join(each.fields), each.schedule) for each in found]
    terminal.rows("Prefect", ("name", "kind", "action", "fields", "schedule"), body, as_json)
