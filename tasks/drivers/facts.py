"""Collect a client's facts with its own tools."""

from datetime import datetime
from typing import Any

from tasks.drivers.host_shell import SystemShell, run_each
from tasks.errors import CommandFailed
from tasks.model.facts import FACTS, Facts, assemble
from tasks.model.names import one_line

DEADLINE_S = 60
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What a parser raises on output of another form, or on hostile output."""


def collect(shell: SystemShell, now: datetime) -> Facts:
    """The facts of the client behind `shell`, as of `now`.

    Raises CommandFailed naming the command when a fact that must be there cannot be had or read.
    """
    values: dict[str, Any] = {}
    unread: list[str] = []
    outputs = run_each(shell, [fact.command for fact in FACTS.values()], deadline_s=DEADLINE_S)
    for (name, fact), output in zip(FACTS.items(), outputs, strict=True):
        called = f"{fact.command[0]} on {shell.name}"
        if output.status != 0:
            if fact.optional or fact.informative:
                continue
            raise CommandFailed(called, output.status, output.stderr.strip())
        try:
            values[name] = fact.parse(output.stdout)
        except _UNREADABLE as exc:
            if not fact.informative:
                raise CommandFailed(called, 0, f"its output cannot be read: {exc!r}") from exc
            unread.append(one_line(f"{name.replace('_', ' ')}: what the tool says cannot be read: {exc!r}"))
    return assemble(now, values, unread)
