"""What every command shares: clear errors, exit codes, progress lines, tables or JSON."""

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from types import FrameType
from typing import Any, ClassVar, NoReturn

import click
from rich.console import Console
from rich.table import Table

from tasks.errors import GbsError, Unreachable

CANCELLED = 130
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

PREFECT_DEFAULTS = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks,flows,blocks",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "DO_NOT_TRACK": "1",
}
"""Prefect settings of every process that runs our code, also of a worker's runs (`gbs deploy` puts them in the pool).

Our log lines go to the UI; on the terminal our own handler shows them, and Prefect's stays quiet. The environment wins.
The server's own settings stand in pyproject.toml.
"""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of a table.")


class _Lines(logging.Handler):
    """Progress on standard error: the time, and what happens."""

    STYLES: ClassVar = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}

    def emit(self, record: logging.LogRecord) -> None:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        err.print(f"[dim]{clock}[/dim] ", end="")
        err.print(record.getMessage(), style=self.STYLES.get(record.levelno), markup=False)


def show_progress() -> None:
    """Send the log lines of flows and tasks to the terminal; call before anything imports Prefect."""
    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    handler = _Lines(logging.INFO)
    for name in ("tasks", "flows", "blocks"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)


def _cancel(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def run(command: click.Command) -> None:
    """Run a command and exit: with the code of its error, or what it returns."""
    show_progress()
    # As Ctrl-C: what is under way is undone and the run says that it was cancelled.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = command(standalone_mode=False)
    except click.exceptions.Abort:
        err.print("cancelled")
        code = CANCELLED
    except KeyboardInterrupt:
        err.print("cancelled")
        code = CANCELLED
    except click.ClickException as exc:
        exc.show()
        code = 2
    except GbsError as exc:
        code = _explain(exc)
    except Exception as exc:
        unreachable = _server_unreachable(exc)
        if unreachable is None:
            raise
        code = _explain(unreachable)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: GbsError) -> int:
    err.print(f"error: {error}", style="red", markup=False)
    return error.exit_code


def _server_unreachable(error: Exception) -> Unreachable | None:
    """What Prefect's client raises without a server: httpx's errors, or a RuntimeError for a run's first call."""
    from httpx import TransportError

    if not isinstance(error, TransportError) and "Failed to reach API" not in str(error):
        return None
    where = os.environ.get("PREFECT_API_URL", "of the Prefect profile")
    return Unreachable(f"the Prefect server {where}", f"{error}; start it with: prefect server start")


WRAPPED = ("reason", "why", "which", "gap", "fields", "paths", "databases", "proven by", "template has", "client has")
"""Columns whose text may break: names and ids of the others are copied from the table."""


def rows(title: str, columns: Sequence[str], body: Sequence[Sequence[Any]], as_json: bool, empty: str = "none") -> None:
    """Print rows as a table, or as a JSON list of objects keyed by the columns."""
    if as_json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in body], indent=1, default=str))
        return
    if not body:
        out.print(f"{title}: {empty}")
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    needed = 0
    for place, column in enumerate(columns):
        wraps = column in WRAPPED
        width = 20 if wraps else max(len(str(row[place] or "")) for row in (*body, columns))
        needed += width + 2
        table.add_column(column.upper(), overflow="fold", no_wrap=not wraps, min_width=width, header_style="dim")
    for row in body:
        table.add_row(*(_styled(str(value if value is not None else "")) for value in row))
    if needed > out.width:  # what does not fit, rich would leave out without a word, column by column
        table.width = needed
    out.print(table, crop=False)


COLOURS = {"OK": "green", "WARNING": "yellow", "PARTIAL": "yellow", "FAILED": "red", "MISSED": "red", "SKIPPED": "dim"}


def _styled(text: str) -> str:
    escaped = text.replace("[", "\\[")
    return f"[{COLOURS[text]}]{escaped}[/]" if text in COLOURS else escaped
