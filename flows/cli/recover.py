"""`gbs recover`: bring back what was lost."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from flows.cli import recover_database, recover_files, terminal
from flows.cli.instant import show as show_instant
from tasks.model.assessment_words import rows
from tasks.model.names import human_age, human_bytes
from tasks.model.outcome import EXIT_CODES, Outcome


@click.group("recover")
def recover_command() -> None:
    """Bring back what was lost."""


recover_command.add_command(recover_files.files)
recover_command.add_command(recover_database.database)


@recover_command.command(short_help="A VM: image, a night's files, databases, probes.")
@click.argument("name", metavar="VM")
@click.option("--from", "night", help="latest (the default), daily.N, an id or YYYY-MM-DD.")
@click.option("--to", "host", help="Another KVM host than the one that had it.")
@click.option("--as", "as_name", metavar="NAME", help="A second VM beside the first: own name, UUID, MACs and files.")
@click.option(
    "--network", "networks", metavar="OLD=NEW", multiple=True, help="NEW: a network, bridge:NAME, user, none."
)
@click.option("--isolated", is_flag=True, help="Connect all its cards to a network that leads nowhere.")
@click.option(
    "--instant",
    is_flag=True,
    help="Run it from its image in the store at once and move it to its host meanwhile, as `gbs instant start`.",
)
@click.option("--dry-run", is_flag=True, help="Only assess; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask: assess, and go on if nothing refuses it.")
@terminal.json_option
def vm(
    name: str,
    night: str | None,
    host: str | None,
    as_name: str | None,
    networks: tuple[str, ...],
    isolated: bool,
    instant: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Bring back VM: its image, updated with the files of a night, defined, started, databases restored, probed.

    It is assessed first, and you are asked; without a terminal and without --yes it is only assessed. Works with the
    old KVM host dead. Nothing is ever overwritten.

    With --instant it has the files of the image, of no later night unless --from names one, and you are not asked.
    """
    from flows import recover_vm as module

    recover_vm: Any = module.recover_vm
    wanted = {"night": night, "to": host, "as_name": as_name, "networks": list(networks), "isolated": isolated}
    if instant:
        return show_instant(name, recover_vm(name, **wanted, dry_run=dry_run, instant=True), as_json)
    return _ask_and_do(name, partial(recover_vm, name, **wanted), dry_run=dry_run, yes=yes, as_json=as_json)


@recover_command.command(short_help="A physical client, as a VM.")
@click.argument("client")
@click.option("--to", "host", required=True, help="The KVM host.")
@click.option("--network", required=True, help="bridge:NAME or network:NAME of that host, for all its cards.")
@click.option("--from", "night", default="latest", show_default=True, help="latest, daily.N, an id or YYYY-MM-DD.")
@click.option("--template", help="A flavour, or the image that a template was made of (VM/ID); else one that serves.")
@click.option("--memory", "memory_mib", type=click.IntRange(64), help="In MiB; else what the client had.")
@click.option("--processors", type=click.IntRange(1), help="Else as many as the client had.")
@click.option("--emulated", is_flag=True, help="For a host without KVM.")
@click.option("--isolated", is_flag=True, help="Connect all its cards to a network that leads nowhere.")
@click.option("--dry-run", is_flag=True, help="Only assess; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask: assess, and go on if nothing refuses it.")
@terminal.json_option
def physical(client: str, host: str, dry_run: bool, yes: bool, as_json: bool, **wanted: Any) -> int:
    """Bring a physical CLIENT back as a VM: a template of its flavour, its disks' ids, the files of a night, databases.

    Refused while the client itself still answers, unless --isolated. Else as `gbs recover vm`.
    """
    from flows.recover_physical import recover_physical

    run: Any = recover_physical
    return _ask_and_do(client, partial(run, client, host, **wanted), dry_run=dry_run, yes=yes, as_json=as_json)


def _ask_and_do(name: str, recover: Callable[..., Any], *, dry_run: bool, yes: bool, as_json: bool) -> int:
    """The exit code."""
    assessment = recover(dry_run=True)
    acts = not dry_run and (yes or (sys.stdin.isatty() and not as_json))
    if as_json and not acts:
        print(assessment.model_dump_json(indent=1))
    elif not as_json:
        terminal.rows(f"recovery of {name}, assessed", ("what", "which", "why"), rows(assessment), False)
    assessment.require_possible()
    if not acts or not (yes or click.confirm(f"Bring back {name} so?", err=True)):
        terminal.err.print("assessed only: nothing was changed" + ("" if dry_run else "; --yes goes on"))
        return 0
    recovered = recover()
    _show(recovered, as_json)
    return EXIT_CODES[Outcome.WARNING if recovered.warnings else Outcome.OK]


def _show(recovered: Any, as_json: bool) -> None:
    if as_json:
        print(recovered.model_dump_json(indent=1))
        return
    title = f"{recovered.name} runs on {recovered.kvm_host} as of night {recovered.night}"
    steps = [(step.name, human_age(step.seconds)) for step in recovered.steps]
    terminal.rows(title, ("step", "took"), steps, False)
    terminal.out.print(f"image {recovered.image}; {human_bytes(recovered.bytes_moved)} moved", markup=False)
    for what, names in (
        ("restored", recovered.databases),
        ("probed", recovered.probes),
        ("dropped", recovered.dropped),
    ):
        for text in names:
            terminal.out.print(f"{what}: {text}", markup=False)
    for warning in recovered.warnings:
        terminal.out.print(f"warning: {warning}", style="yellow", markup=False)
