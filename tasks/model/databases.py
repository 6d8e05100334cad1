"""What is dumped: the servers and files that we know engines for, and commands of the operator's."""

from dataclasses import dataclass
from typing import Literal

EngineName = Literal["postgresql", "mariadb", "sqlite", "redis", "openldap"]
DumpedBy = Literal[EngineName, "command"]


@dataclass(frozen=True)
class Server:
    """An engine on a client; `login` is a file there with what logs us in, in the engine's own format, or empty."""

    engine: EngineName
    login: str = ""


@dataclass(frozen=True)
class DumpCommand:
    """A command on a client, the files that it must leave in the folder that it is run in, what proves and restores."""

    label: str
    command: tuple[str, ...]
    produces: tuple[str, ...]
    check: tuple[str, ...] = ()
    """Gets the path of one file after the other as its last word; fails unless the file is whole."""
    restore: tuple[str, ...] = ()
    """Runs in the folder of the files; empty when they are brought back by hand."""
