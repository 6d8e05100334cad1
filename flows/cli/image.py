"""`gbs image`: replicas that come back or are pinned; templates, for all systems with the same shape of disks."""

from datetime import datetime
from typing import Any

import click

from flows.cli import terminal
from tasks import catalogue, history


@click.group("image")
def image_command() -> None:
    """What is done with images besides taking them."""


@image_command.command()
@click.argument("vm")
@click.argument("image", default="newest")
def fetch(vm: str, image: str) -> None:
    """Bring an IMAGE of VM back from its replica in the permanent store: the newest, or the one of that id."""
    from flows.image_fetch import image_fetch

    fetched: Any = image_fetch(vm, image)
    terminal.out.print(f"image {fetched} of {vm} is in the store", markup=False)


_vm, _image = click.argument("vm"), click.argument("image")


@image_command.command()
@_vm
@_image
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), required=True, help="The last day on which it is kept.")
@click.option("--reason", required=True, help="Why; `gbs retention images` shows it.")
def pin(vm: str, image: str, until: datetime, reason: str) -> None:
    """Keep the replica of an IMAGE of VM (an id, or `newest`), whatever the policy says."""
    found = history.pin_image(vm, image, until.date(), reason)
    terminal.out.print(f"the replica of image {found} of {vm} is kept until {until:%Y-%m-%d}", markup=False)


@image_command.command()
@_vm
@_image
def unpin(vm: str, image: str) -> None:
    """Leave the replica of an IMAGE of VM to its policy again."""
    found = history.unpin_image(vm, image)
    terminal.out.print(f"the replica of image {found} of {vm} is left to the policy", markup=False)


@image_command.group()
def template() -> None:
    """Images that serve every system with the same shape of disks: sizes, partitions, LVM, file systems, boot mode."""


@template.command()
@click.argument("image", metavar="IMAGE")
@terminal.json_option
def add(image: str, as_json: bool) -> None:
    """Keep IMAGE (a VM, for its newest image, or VM/ID) as a template of the flavour that its disks show."""
    from flows.template_add import template_add

    made: Any = template_add(image)
    body = [(made.flavour, f"{made.vm}/{made.image}", str(len(made.shape.disks)), made.shape.boot_mode)]
    terminal.rows("template", ("flavour", "image", "disks", "boot mode"), body, as_json)


@template.command("list")
@terminal.json_option
def list_(as_json: bool) -> None:
    """The templates that there are, by flavour."""
    body = [
        (row.flavour, f"{row.vm}/{row.image}", f"{row.added:%Y-%m-%d %H:%M}", str(len(row.shape.disks)))
        for row in catalogue.templates()
    ]
    terminal.rows("templates", ("flavour", "image", "added", "disks"), body, as_json)


@template.command()
@click.argument("client")
@terminal.json_option
def match(client: str, as_json: bool) -> int:
    """Which templates serve CLIENT, by the facts of its last night, and where the others differ from it.

    Exit code 10 when none does.
    """
    matches = [(f"{match.template.vm}/{match.template.image}", match) for match in catalogue.match_templates(client)]
    body = [
        (name, "same" if point.same else "DIFFERS", point.what, point.template, point.client)
        for name, match in matches
        for point in match.points
    ]
    serving = [name for name, match in matches if match.serves]
    title = f"{client}: {', '.join(serving) + ' serves' if serving else 'no template serves'}"
    terminal.rows(title, ("template", "verdict", "point", "template has", "client has"), body, as_json)
    return 0 if serving else 10
