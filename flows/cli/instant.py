"""`gbs instant`: run a VM from the store at once, then move it to its host or take it away again."""

from typing import Any

import click

from flows.cli import terminal
from flows.cli.show import show_instant
from tasks.model.instant import Instant
from tasks.model.names import human_age
from tasks.model.outcome import EXIT_CODES, Outcome


@click.group("instant")
def instant_command() -> None:
    """Run a VM from the store at once; move it to its host while it runs, or take it away again."""


@instant_command.command()
@click.argument("vm")
@click.option("--from", "night", help="Bring the image up to this night first: latest, daily.N, an id or YYYY-MM-DD.")
@click.option("--to", "host", help="Another KVM host than the one that had it.")
@click.option("--hold", is_flag=True, help="Do not move it yet: it runs from the store until keep or abandon.")
@terminal.json_option
def start(vm: str, night: str | None, host: str | None, hold: bool, as_json: bool) -> int:
    """Start VM from its image in the store, and move it to its KVM host while it runs.

    Without --from it has the files of the image, of no later night. A start or move that was cut off goes on.
    """
    return _run(vm, "start", as_json, night=night, to=host, hold=hold)


@instant_command.command()
@click.argument("vm")
@terminal.json_option
def keep(vm: str, as_json: bool) -> int:
    """Move VM, which runs from the store, to its KVM host while it runs."""
    return _run(vm, "keep", as_json)


@instant_command.command()
@click.argument("vm")
@click.option("--yes", is_flag=True, help="Do not ask.")
@terminal.json_option
def abandon(vm: str, yes: bool, as_json: bool) -> int:
    """Remove VM, which runs from the store, from its KVM host, with all that it wrote since it was started."""
    if not yes:
        click.confirm(f"What {vm} wrote since it was started from the store is lost. Remove it?", abort=True, err=True)
    return _run(vm, "abandon", as_json)


@instant_command.command("list")
@terminal.json_option
def list_(as_json: bool) -> None:
    """The VMs that still run from the store."""
    show_instant(as_json)


def _run(vm: str, action: Any, as_json: bool, **options: Any) -> int:
    from flows.instant_vm import instant_vm

    return show(vm, instant_vm(vm, action, **options), as_json)


def show(vm: str, done: Instant, as_json: bool) -> int:
    """Print what became of a VM that was started from the store; the exit code that it comes to."""
    code = EXIT_CODES[Outcome.WARNING if done.warnings else Outcome.OK]
    if as_json:
        print(done.model_dump_json(indent=1))
        return code
    where = "its disks are there" if done.done == "kept" else "its disks are still in the store"
    title = f"{vm} was removed from {done.kvm_host}" if done.done == "abandoned" else f"{vm}: {done.kvm_host}, {where}"
    terminal.rows(title, ("step", "took"), [(step.name, human_age(step.seconds)) for step in done.steps], False)
    for note in done.notes:
        terminal.out.print(note, markup=False)
    for warning in done.warnings:
        terminal.out.print(f"warning: {warning}", style="yellow", markup=False)
    if not done.ended:
        terminal.out.print(f"then: gbs instant keep {vm}, or gbs instant abandon {vm}", markup=False)
    return code
