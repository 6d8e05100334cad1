"""`gbs drill`: prove that VMs can be recovered, where it disturbs nobody."""

from typing import Any

import click

from flows.cli import terminal
from flows.cli.run import run_flow


@click.command("drill")
@click.argument("vms", metavar="[VM]...", nargs=-1)
@click.option("--all", "everyone", is_flag=True, help="All VMs of the inventory.")
@click.option("--from", "night", default="latest", show_default=True, help="latest, daily.N, an id or YYYY-MM-DD.")
@click.option("--to", "host", help="The KVM host to drill on; by default the one that each VM is on.")
@terminal.json_option
def drill_command(vms: tuple[str, ...], everyone: bool, night: str, host: str | None, as_json: bool) -> int:
    """Recover each VM under another name on a network that leads nowhere, boot it, restore its databases, probe it.

    It is always taken away again. Without VM: those whose turn it is (policy drill_days). What each drill showed is in
    `gbs list drills`, and in the UI with a picture of the console.
    """
    if everyone and vms:
        raise click.UsageError("name VMs or say --all, not both")
    from flows.drill import drill

    run: Any = drill
    return run_flow("drill", lambda: run([*vms] or None, night, host, everyone), as_json)
