"""`gbs retention`, `gbs pin` and `gbs unpin`: which restore points and replicas of images are kept, and why."""

from datetime import UTC, datetime

import click

from flows.cli import terminal
from tasks import history
from tasks.model.names import human_age
from tasks.model.retention import Point


def _age(point: Point) -> str:
    if point.content is not None:
        return human_age((datetime.now(UTC) - point.content).total_seconds())
    return "its manifest cannot be read" if point.unreadable else "no stamp: no backup"


@click.group("retention")
def retention_command() -> None:
    """Which restore points and replicas of images are kept, and why."""


@retention_command.command()
@click.argument("client")
@terminal.json_option
def explain(client: str, as_json: bool) -> None:
    """Every restore point of CLIENT, and what the next night that goes well does with it. Nothing is done."""
    body = [(row.point.name, row.point.night, _age(row.point), row.next) for row in history.explain(client)]
    terminal.rows(f"restore points of {client}", ("point", "night", "age", "with the next night"), body, as_json)


@retention_command.command()
@click.argument("vm", required=False)
@terminal.json_option
def images(vm: str | None, as_json: bool) -> None:
    """Every replica of the images of VM, or of all, and what the next replication does with it. Nothing is done."""
    show_images(vm, as_json)


def show_images(vm: str | None, as_json: bool) -> None:
    """What becomes of replicas, a row each."""
    body = [
        (name, one.replica.id, one.replica.place, one.next)
        for name, judged in history.explain_images(vm).items()
        for one in judged
    ]
    columns = ("vm", "image", "place", "with the next replication")
    terminal.rows("replicas of images", columns, body, as_json)


@retention_command.command()
@click.option("--policy", default="default", show_default=True, help="A policy of the inventory.")
@click.option("--nights", type=click.IntRange(1, 3000), default=365, show_default=True, help="So many that went well.")
@click.option("--every", type=click.IntRange(1, 31), default=1, show_default=True, help="So many days apart.")
@terminal.json_option
def simulate(policy: str, nights: int, every: int, as_json: bool) -> None:
    """The restore points that a policy has kept after many nights. Nothing is done."""
    points = history.simulate(policy, nights, every)
    body = [(point.name, f"{point.content:%Y-%m-%d}", _age(point)) for point in points]
    terminal.rows(f"policy {policy} after {nights} nights", ("point", "content of", "age"), body, as_json)


_client = click.argument("client")
_point = click.argument("point")


@click.command("pin")
@_client
@_point
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), required=True, help="The last day on which it is kept.")
@click.option("--reason", required=True, help="Why; shown wherever the point is.")
def pin_command(client: str, point: str, until: datetime, reason: str) -> None:
    """Keep a restore point of CLIENT, whatever its policy says. POINT is its name, its night, or a date."""
    night = history.pin(client, point, until.date(), reason)
    terminal.out.print(f"night {night.manifest.id} of {client} is kept until {until:%Y-%m-%d}", markup=False)


@click.command("unpin")
@_client
@_point
def unpin_command(client: str, point: str) -> None:
    """Leave a restore point of CLIENT to its policy again."""
    night = history.unpin(client, point)
    terminal.out.print(f"night {night.manifest.id} of {client} is left to the policy", markup=False)
