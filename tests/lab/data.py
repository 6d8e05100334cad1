"""Data in web1 that a backup has to bring back, changes to it night by night, and a listing to compare by.

Over plain ssh, with nothing of GBS: these are what its claims are checked with.
"""

from __future__ import annotations

from pathlib import Path

from tests.lab.lab import Lab
from tests.lab.progress import Say, phase, say

_SCRIPTS = Path(__file__).parent / "data_scripts"


def seed(lab: Lab, tell: Say = say) -> None:
    """Put /srv/data, the PostgreSQL database shop and the MariaDB database crm into web1, as of night 0."""
    with phase("web1: seeding files and databases", tell):
        _run(lab, "seed.sh")


def change(lab: Lab, night: int, tell: Say = say) -> None:
    """Change, add and remove files and rows; each night (1, 2 ...) in another way, to be done once each in order."""
    with phase(f"web1: changes of night {night}", tell):
        _run(lab, "change.sh", str(night))


def inventory_of(lab: Lab, tell: Say = say) -> str:
    """List all files with owners, modes, times, links, ACLs, xattrs, capabilities and sha256, and the databases' rows.

    Plain text in a fixed order: two states are the same when their listings are (compare with diff).
    """
    with phase("web1: listing files and databases", tell):
        return _run(lab, "inventory.sh").decode("ascii")


def _run(lab: Lab, script: str, *args: str) -> bytes:
    command = " ".join(["bash -s --", *args])
    return lab.web1.run(command, stdin=(_SCRIPTS / script).read_bytes(), timeout_s=600).stdout
