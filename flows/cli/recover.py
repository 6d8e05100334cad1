"""`gbs recover`: bring back what was lost."""

import click

from flows.cli import recover_database, recover_files, terminal
from tasks.model.names import human_age, human_bytes


@click.group("recover")
def recover_command() -> None:
    """Bring back what was lost."""


recover_command.add_command(recover_files.files)
recover_command.add_command(recover_database.database)


@recover_command.command()
@click.argument("name", metavar="VM")
@click.option("--from", "night", default="latest", show_default=True, help="latest, daily.N, an id or YYYY-MM-DD.")
@click.option("--to", "host", help="Another KVM host than the one that had it.")
@click.option("--dry-run", is_flag=True, help="Say what would be used and whether it fits; change nothing.")
@terminal.json_option
def vm(name: str, night: str, host: str | None, dry_run: bool, as_json: bool) -> None:
    """Bring back VM: its image, updated with the files of a night, defined, started, databases restored, probed.

    Works with the old KVM host dead. Nothing is ever overwritten.
    """
    from flows.recover_vm import recover_vm

    recovered = recover_vm(name, night, host, dry_run)
    if recovered is None:
        terminal.out.print("dry run: nothing was changed")
        return
    if as_json:
        print(recovered.model_dump_json(indent=1))
        return
    steps = [(step, human_age(seconds)) for step, seconds in recovered.steps]
    terminal.rows(f"{name} runs on {recovered.kvm_host} as of night {recovered.night}", ("step", "took"), steps, False)
    terminal.out.print(f"image {recovered.image}; {human_bytes(recovered.bytes_moved)} moved", markup=False)
    for title, names in (
        ("restored", recovered.databases),
        ("probed", recovered.probes),
        ("dropped", recovered.dropped),
    ):
        for text in names:
            terminal.out.print(f"{title}: {text}", markup=False)
