"""Where a system's rsync daemon is reached and with which login."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DaemonTarget:
    """A module of an rsync daemon that begins at the system's root; the password is in a file, never carried."""

    name: str
    address: str
    port: int
    module: str
    user: str | None = None
    password_file: Path | None = None
