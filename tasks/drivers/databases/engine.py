"""What a database engine is to us: a handful of scripts, and where its data lies."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Engine:
    """The scripts run as root on the client, as `sh -euc SCRIPT gbs ARGUMENT…`: $1 and $2 are data, never code."""

    data_folders: tuple[str, ...]
    """rsync patterns of the data files that a dump covers."""
    suffix: str
    """How the file of a database's dump ends."""
    ready: str
    """Fails unless the server accepts connections."""
    databases: str
    """Prints a line per database, without templates and the engine's own: its name in UTF-8 as hexadecimal digits,
    white space, the bytes that it holds."""
    dump: str
    """Writes database $1 to the file $2."""
    check: str
    """Fails unless the file $1 is a whole dump."""
    restore: str
    """Replaces database $1 by the dump $2."""
    dump_accounts: str
    """Writes roles or users with their grants to the file $1."""
    check_accounts: str
    """Fails unless the file $1 is a whole dump of accounts."""
    restore_accounts: str
    """Brings back the accounts in the file $1."""
