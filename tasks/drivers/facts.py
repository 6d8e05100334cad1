"""Collect a client's facts with its own tools."""

from datetime import datetime
from typing import Any

from tasks.drivers.host_shell import run_each
from tasks.drivers.ssh import Shell
from tasks.errors import CommandFailed
from tasks.model.facts import FACTS, Facts, assemble

DEADLINE_S = 60


def collect(shell: Shell, now: datetime) -> Facts:
    """The facts of the client behind `shell`, as of `now`.

    Raises CommandFailed naming the command when a fact that must be there cannot be had or read.
    """
    values: dict[str, Any] = {}
    outputs = run_each(shell, [fact.command for fact in FACTS.values()], deadline_s=DEADLINE_S)
    for (name, fact), output in zip(FACTS.items(), outputs, strict=True):
        if output.status != 0:
            if fact.optional:
                continue
            raise CommandFailed(f"{fact.command[0]} on {shell.target.name}", output.status, output.stderr.strip())
        try:
            values[name] = fact.parse(output.stdout)
        except (ValueError, KeyError, TypeError) as exc:
            called = f"{fact.command[0]} on {shell.target.name}"
            raise CommandFailed(called, 0, f"its output cannot be read: {exc!r}") from exc
    return assemble(now, values)
