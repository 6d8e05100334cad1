"""Which dump a database is brought back from, and what came of it."""

from pydantic import BaseModel, ConfigDict

from tasks.errors import Ambiguous, NothingToRecover
from tasks.model.manifest import DumpRecord, NightManifest


class RecoveredDatabase(BaseModel):
    """A database that was brought back, or would be (dry run)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    client: str
    night: str
    engine: str
    database: str
    size_bytes: int
    """Of the dump."""
    to: str
    name: str
    """What it is called there."""
    exists: bool
    """Whether one of that name was there before."""
    tables: int | None = None
    """Counted there after it was loaded."""
    expected_tables: int | None = None
    """Counted when the night's dump was proven; None where that was not asked for."""
    kept_aside: str | None = None
    """What the old one is called now, or the dump that was made of it."""
    warnings: tuple[str, ...] = ()
    """What is left to do."""
    dry_run: bool = False


def dump_of(night: NightManifest, database: str, engine: str | None = None) -> DumpRecord:
    """The night's dump of a database; NothingToRecover with what there is, Ambiguous when two engines have one."""
    dumps = [dump for dump in night.dumps if dump.kind == "database"]
    fitting = [dump for dump in dumps if dump.database == database and engine in (None, dump.engine)]
    if not fitting:
        listed = ", ".join(f"{dump.engine} {dump.database}" for dump in dumps[:20]) or "none"
        raise NothingToRecover(f"database {database!r} of {night.client}", f"night {night.id} has dumps of: {listed}")
    if len(fitting) > 1:
        raise Ambiguous(database, [f"--engine {dump.engine}" for dump in fitting])
    return fitting[0]
