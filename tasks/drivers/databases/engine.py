"""What a database engine is to us: a handful of scripts, and where its data lies."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Accounts:
    """What belongs to a whole server: roles or users with their grants, or its configuration."""

    dump: str
    """Writes them to the file $1."""
    check: str
    """Fails unless the file $1 is a whole dump of them."""
    restore: str
    """Brings back what the file $1 holds."""


@dataclass(frozen=True)
class Engine:
    """The scripts run as root on the client, as `sh -euc SCRIPT gbs ARGUMENT…`: $1 and $2 are data, never code.

    `$login` is a file on the client that holds how to log in, in the engine's own format, or empty: then the engine is
    spoken to as its superuser through its local socket. `nicely COMMAND…` runs what is long.
    """

    processes: tuple[str, ...]
    """What its servers are called in the client's list of processes; empty when it has none."""
    data_folders: tuple[str, ...]
    """rsync patterns of the data files that a dump covers."""
    suffix: str
    """How the file of a database's dump ends."""
    ready: str
    """Fails unless the server accepts connections."""
    databases: str
    """Prints a line per database, without templates and the engine's own: its name in UTF-8 as hexadecimal digits,
    white space, the bytes that it holds. The names that the inventory declares are $@."""
    dump: str
    """Writes database $1 to the file $2."""
    check: str
    """Fails unless the file $2 is a whole dump of database $1."""
    restore: str
    """Replaces database $1 by the dump $2."""
    accounts: Accounts | None
