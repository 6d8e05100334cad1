"""What stage 0 found and made on a client; stage 1 takes it from here."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from tasks.model.facts import Facts
from tasks.model.manifest import DumpRecord


class Prepared(BaseModel):
    """The facts and dumps of one client, and what could not be dumped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    client: str
    started: datetime
    ended: datetime
    facts: Facts
    dumps: tuple[DumpRecord, ...] = ()
    failures: tuple[str, ...] = ()

    def covered(self, engine: str) -> bool:
        """Whether every declared database of `engine` was dumped, so that its data files may be left out."""
        return any(dump.engine == engine for dump in self.dumps) and not any(engine in text for text in self.failures)
