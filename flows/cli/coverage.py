"""`gbs coverage`: what nobody protects."""

import click

from flows.cli import terminal
from tasks import coverage


@click.command("coverage")
@terminal.json_option
def coverage_command(as_json: bool) -> int:
    """List VMs, file systems and databases that are there and that no backup would bring back. Exit 3 when there are.

    VMs are asked for at the KVM hosts now; file systems and databases are what the last stage 0 found.
    """
    gaps = list(coverage.gaps())
    rows = [(gap.subject, gap.what, gap.fix) for gap in gaps]
    terminal.rows("Not protected", ("subject", "gap", "what closes it"), rows, as_json, "nothing that GBS could find")
    return 3 if gaps else 0
