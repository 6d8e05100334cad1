"""What a fact is: a command that runs on the client, and a pure parser of what it says."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict


class FactRow(BaseModel):
    """A value that a parser gives back."""

    model_config = ConfigDict(frozen=True)


@dataclass(frozen=True)
class Fact:
    """A command to run on the client and the parser of its output.

    `optional` ones may be missing there. Nothing is decided by `informative` ones: they may be missing, too, and output
    that cannot be read leaves them unknown.
    """

    command: tuple[str, ...]
    parse: Callable[[str], Any]
    optional: bool = False
    informative: bool = False


def script(text: str) -> tuple[str, ...]:
    """The argv of a constant script for sh(1)."""
    return ("sh", "-c", text)
