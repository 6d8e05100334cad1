"""`gbs inventory`: validate and show what is declared."""

import json
from pathlib import Path

import click

from flows.cli import terminal
from tasks import declaration
from tasks.model.inventory import Inventory

file_option = click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path),
    help="Another file than GBS_INVENTORY or /etc/gbs/inventory.yaml.",
)


@click.group("inventory")
def inventory_command() -> None:
    """Validate and show the inventory."""


@inventory_command.command()
@file_option
def validate(path: Path | None) -> None:
    """Read the inventory and report every problem at once, with its line."""
    found = declaration.load(path)
    terminal.out.print(
        f"{declaration.where(path)}: good; {len(found.clients)} client(s), {len(found.kvm_hosts)} KVM host(s)",
        markup=False,
    )


@inventory_command.command()
@file_option
@terminal.json_option
def show(path: Path | None, as_json: bool) -> None:
    """Show what is protected, defaults filled in."""
    found = declaration.load(path)
    if as_json:
        print(found.model_dump_json(indent=1))
        return
    columns = ("name", "kind", "address", "vm", "paths", "databases", "policy")
    body = [
        (
            *(name, "KVM host" if name in found.kvm_hosts else "client", f"{system.address}:{system.port}"),
            *(getattr(system, "vm", None), " ".join(system.paths) or "all local file systems"),
            *(" ".join(database.engine for database in system.databases), system.policy),
        )
        for name, system in found.systems.items()
    ]
    terminal.rows(f"site {found.site}", columns, body, False)


@inventory_command.command()
def schema() -> None:
    """Print the JSON schema of the inventory, for editors."""
    print(json.dumps(Inventory.model_json_schema(), indent=1))
