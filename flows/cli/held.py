"""`gbs accept` and `gbs reject`: an operator's word about a night that is held."""

from collections.abc import Callable
from typing import Any

import click

from flows.cli import terminal
from tasks import held
from tasks.model.anomaly import Decision

Command = Callable[..., None]


def _word(command: Command) -> Command:
    """The arguments that both commands have."""
    declared: Any = command
    for option in (
        terminal.json_option,
        click.option("--dry-run", is_flag=True, help="Only say what would be done."),
        click.option("--reason", required=True, help="Why; kept in the permanent store."),
        click.argument("night", required=False),
        click.argument("client"),
    ):
        declared = option(declared)
    return declared  # type: ignore[no-any-return]


@click.command("accept")
@_word
def accept_command(client: str, night: str | None, reason: str, dry_run: bool, as_json: bool) -> None:
    """Make a held night of CLIENT, by default the newest, its newest restore point: what changed is right.

    Nights held before it go to the trash. As much change is not held again.
    """
    _show(client, held.accept(client, night, reason, dry_run), "a later night is accepted", dry_run, as_json)


@click.command("reject")
@_word
def reject_command(client: str, night: str | None, reason: str, dry_run: bool, as_json: bool) -> None:
    """Put a held night of CLIENT, by default all of them, into the trash: what changed is wrong.

    The last good restore point stays pinned for 30 days, and nights to come are compared with it again.
    """
    _show(client, held.reject(client, night, reason, dry_run), "it is rejected", dry_run, as_json)


def _show(client: str, decision: Decision, why: str, dry_run: bool, as_json: bool) -> None:
    body = [(move.point, move.to or "trash", move.reason) for move in decision.moves]
    body += [(f"night {night}", f"trash until {decision.due}", why) for night in decision.given_up]
    body += [(f"night {pin.night}", f"pinned until {pin.until}", pin.reason) for pin in decision.pinned]
    title = f"{client}, what would be done" if dry_run else f"{client}, done"
    terminal.rows(title, ("what", "becomes", "why"), body, as_json, empty="nothing, no such night is held")
