"""`gbs check`: a preflight."""

import json
from dataclasses import asdict

import click

from flows.cli import terminal
from tasks import preflight


@click.command("check")
@terminal.json_option
def check_command(as_json: bool) -> int:
    """Try every connection, tool, mount and free space now; one line per finding. Exit 1 when one does not hold."""
    findings = []
    for finding in preflight.check():
        findings.append(finding)
        if not as_json:
            mark, style = ("good", "green") if finding.good else ("BAD ", "red")
            terminal.out.print(f"[{style}]{mark}[/]", end=" ")
            terminal.out.print(f"{finding.subject}: {finding.check}: {finding.seen}", markup=False)
    bad = sum(not finding.good for finding in findings)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        terminal.out.print(f"{len(findings)} checked, {bad} bad")
    return 1 if bad else 0
