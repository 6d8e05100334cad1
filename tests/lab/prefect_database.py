"""A database for a Prefect server that need not be migrated any more.

A server on an empty database needs 18 s to start, nearly all of it for migrations; over a migrated copy it needs 5 s
(3.8.8, 2 cores). The migrated database is kept outside the checkout, one per Prefect version.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gbs-tests"


def migrated_copy(database: Path) -> Path:
    """Make the file `database`: an empty SQLite database of the installed Prefect's schema; its path is returned."""
    kept = _CACHE / f"prefect-{version('prefect')}.sqlite"
    if not kept.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            partial = _CACHE / f"{kept.name}.{os.getpid()}.partial"
            _migrate(Path(folder), partial)
            partial.rename(kept)
    database.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(kept, database))


def _migrate(folder: Path, result: Path) -> None:
    made = folder / "migrated.sqlite"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    ours = {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{made}",
        "DO_NOT_TRACK": "1",
    }
    argv = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
    subprocess.run(argv, env={**clean, **ours}, check=True, stdout=subprocess.DEVNULL, timeout=120)
    with sqlite3.connect(made) as database:  # folds the write-ahead log in
        database.execute("VACUUM INTO ?", (str(result),))
