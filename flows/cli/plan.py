"""`gbs plan`: how it is brought back by hand, when nothing of GBS is left."""

import sys

import click

from tasks import runbook


@click.group("plan")
def plan_command() -> None:
    """How it is brought back by hand, when nothing of GBS is left."""


@plan_command.command()
@click.argument("name", metavar="VM")
@click.option("--from", "night", default="latest", show_default=True, help="latest, daily.N, an id or YYYY-MM-DD.")
@click.option("--to", "host", help="Another KVM host than the one that had it.")
@click.option("--permanent", is_flag=True, help="From the permanent store alone, as if the store were lost.")
def vm(name: str, night: str, host: str | None, permanent: bool) -> None:
    """Print a shell script that brings VM back with plain tools, from the image and night that a recovery would take.

    Keep it where you find it when this server is gone. Every step ends with a check; nothing is overwritten.
    """
    script = runbook.of_vm(name, night, host, permanent=permanent)
    # Names of files are bytes, and this is for a file.
    sys.stdout.buffer.write(script.encode("utf-8", "surrogateescape"))
