"""`gbs device`: configurations of network and SAN devices, their history, and how one is put back."""

import json
from typing import Any

import click

from flows.cli import terminal
from tasks import devices, places
from tasks.model.device import PROFILES


@click.group("device")
def device_command() -> None:
    """Configurations of network and SAN devices: what is kept, what was changed, how one is put back."""


@device_command.command("list")
@terminal.json_option
def list_(as_json: bool) -> None:
    """The kept configurations, newest first: since when, and when last seen so."""
    body: list[tuple[Any, ...]] = []
    for name in places.inventory().devices:
        kept = places.store().configurations_of(name)
        body += [
            (name, row.id, row.type, f"{row.first_seen:%Y-%m-%d %H:%M}", f"{row.last_seen:%Y-%m-%d %H:%M}", row.unsaved)
            for _, row in kept
        ] or [(name, "never seen", "", "", "", "")]
    columns = ("device", "configuration", "type", "since", "last seen", "unsaved")
    terminal.rows("configurations", columns, body, as_json)


@device_command.command()
@click.argument("device")
@click.argument("old", required=False)
@click.argument("new", required=False)
@terminal.json_option
def diff(device: str, old: str | None, new: str | None, as_json: bool) -> None:
    """What differs between two kept configurations of DEVICE, without secrets; by default the last two."""
    kept = [manifest.id for _, manifest in places.store().configurations_of(device)]
    newer, manifest = devices.chosen(device, new)
    older, _ = devices.chosen(device, old or next((id_ for id_ in kept if id_ < manifest.id), manifest.id))
    _, declared = places.device(device)
    lines = devices.difference(older, newer, PROFILES[declared.type])
    if as_json:
        print(json.dumps({"device": device, "old": older.name, "new": newer.name, "lines": lines}, indent=1))
        return
    terminal.out.print(f"{device}: {older.name} → {newer.name}: {'no difference' if not lines else ''}", markup=False)
    for line in lines:
        terminal.out.print(line, markup=False, style={"+": "green", "-": "red"}.get(line[:1]))


@device_command.command()
@click.argument("device")
@click.option("--id", "id_", help="Which kept configuration; the newest without it.")
def recipe(device: str, id_: str | None) -> None:
    """Print how a kept configuration of DEVICE is put back, to be read before anything is done. Nothing is done."""
    folder, manifest = devices.chosen(device, id_)
    target, declared = places.device(device)
    newest, newest_manifest = devices.chosen(device)
    lines = devices.difference(newest, folder, PROFILES[declared.type])
    out = terminal.out
    out.print(f"{device} ({declared.type} at {target.address}): back to {manifest.id}", markup=False, style="bold")
    out.print(f"The file, with its secrets: {folder / devices.RUNNING}", markup=False)
    out.print(f"What would change, seen from {newest_manifest.id} (- goes, + comes):", markup=False)
    for line in lines or ["nothing"]:
        out.print(f"    {line}", markup=False)
    out.print("Read it with whoever knows the device. Then, at its prompt:")
    for step in PROFILES[declared.type].put_back:
        out.print(f"    {step}", markup=False)
    out.print(f"and look again: gbs run devices --device {device}", markup=False)
