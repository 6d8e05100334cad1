"""`gbs run`: the stages, started by hand."""

from collections.abc import Callable
from typing import Any

import click

from flows.cli import terminal
from flows.cli.retention import show_images
from tasks.errors import ClientsFailed
from tasks.model.names import human_age, human_bytes
from tasks.model.outcome import StageResult, exit_code

STAGES = {
    "nightly": "Every stage for every client: prepare, overnight, images that are due, permanent.",
    "prepare": "Stage 0: facts and database dumps on the clients.",
    "overnight": "Stage 1: pull the clients' files, and take the images that are due.",
    "permanent": "Stage 2: from the overnight copies to restore points.",
}
COLUMNS = ("client", "stage", "outcome", "took", "moved", "produced", "reason")


@click.group("run")
def run_command() -> None:
    """Run a stage, or the whole night, now.

    \b
    gbs run nightly                  everything in the inventory
    gbs run overnight --client web1  one client, one stage
    """


def run_flow(title: str, run: Callable[[], Any], as_json: bool) -> int:
    """Run a flow to its end and print its results, one row a client and stage, also when clients failed."""
    try:
        results: list[StageResult] = run()
    except ClientsFailed as exc:
        _show(title, exc.args[3], as_json)
        raise
    _show(title, results, as_json)
    return exit_code(results)


def _show(title: str, results: list[StageResult], as_json: bool) -> None:
    body = [
        (
            *(result.client, result.stage, result.outcome.value, human_age(result.duration_s)),
            *(
                human_bytes(result.bytes_moved) if result.bytes_moved else "",
                result.produced,
                "; ".join(result.reasons),
            ),
        )
        for result in results
    ]
    terminal.rows(title, COLUMNS, body, as_json)


@run_command.command("devices")
@click.option("--device", "devices", multiple=True, help="Only this device; may be given again.")
@terminal.json_option
def _devices(devices: tuple[str, ...], as_json: bool) -> int:
    """Stage 1 for devices: keep the configurations of network and SAN devices that were changed."""
    from flows.devices import devices as flow

    return run_flow("devices", lambda: flow(list(devices) or None), as_json)


@run_command.command("replicate")
@click.option("--dry-run", is_flag=True, help="Only say what becomes of the images' replicas, and why.")
@terminal.json_option
def _replicate(dry_run: bool, as_json: bool) -> int:
    """Stage 2 for images, templates, configurations and the GBS server's own recovery set."""
    if dry_run:
        show_images(None, as_json)
        return 0
    from flows.replicate import replicate as flow

    return run_flow("replicate", flow, as_json)


def _command(stage: str, text: str) -> click.Command:
    @click.command(stage, help=text)
    @click.option("--client", "clients", multiple=True, help="Only this client or KVM host; may be given again.")
    @terminal.json_option
    def command(clients: tuple[str, ...], as_json: bool) -> int:
        import importlib

        flow = getattr(importlib.import_module(f"flows.{stage}"), stage)
        return run_flow(stage, lambda: flow(list(clients) or None), as_json)

    return command


for _stage, _text in STAGES.items():
    run_command.add_command(_command(_stage, _text))
