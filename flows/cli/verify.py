"""`gbs verify`: is what there is still whole."""

import click

from flows.cli import terminal
from flows.cli.run import run_flow

_FILES = "Read only so many of the files, chosen by chance."
_SAMPLE = "Read only so much of each disk, chosen by chance."


@click.group("verify")
def verify_command() -> None:
    """Read backups again and compare them with what their manifests say."""


@verify_command.command()
@click.argument("vm", required=False)
@click.option("--older-than", "older_than_days", type=click.IntRange(0), default=0, metavar="DAYS", help="Only these.")
@click.option("--at-most", type=click.IntRange(1), metavar="N", help="No more than so many, longest unread first.")
@click.option("--sample", type=click.FloatRange(0, 100, min_open=True), default=100, metavar="PERCENT", help=_SAMPLE)
@terminal.json_option
def images(vm: str | None, older_than_days: int, at_most: int | None, sample: float, as_json: bool) -> int:
    """The images of VM, or all: sizes, sha256 (by chunk where there is a listing), qemu-img check.

    \b
    gbs verify images                                everything
    gbs verify images --older-than 30 --at-most 5    five a night, each at least once in a while
    gbs verify images --sample 1                     a hundredth of every image, another one each time
    """
    from flows.verify_images import verify_images

    return run_flow("verified", lambda: verify_images(vm, older_than_days, at_most, sample), as_json)


@verify_command.command()
@click.argument("clients", nargs=-1)
@click.option("--sample", type=click.FloatRange(0, 100, min_open=True), default=100, metavar="PERCENT", help=_FILES)
@terminal.json_option
def points(clients: tuple[str, ...], sample: float, as_json: bool) -> int:
    """The restore points of CLIENTS, or all, where they lie: every file's sha256. A good copy heals a damaged one."""
    from flows.verify_points import verify_points

    return run_flow("verified", lambda: verify_points(list(clients) or None, sample), as_json)


@verify_command.command()
@click.option("--older-than", "older_than_days", type=click.IntRange(0), default=0, metavar="DAYS", help="Only these.")
@click.option("--at-most", type=click.IntRange(1), metavar="N", help="No more than so many, longest unread first.")
@click.option("--sample", type=click.FloatRange(0, 100, min_open=True), default=100, metavar="PERCENT", help=_SAMPLE)
@terminal.json_option
def replicas(older_than_days: int, at_most: int | None, sample: float, as_json: bool) -> int:
    """What the permanent store has of images, templates, configurations: every sha256. The original heals damage."""
    from flows.verify_replicas import verify_replicas

    return run_flow("verified", lambda: verify_replicas(older_than_days, at_most, sample), as_json)
