"""A client of the lab with real database servers, each started on demand on sockets of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tests.lab.client_tree import client_tree
from tests.lab.namespaced import Namespaced

_INIT = Path(__file__).parent / "host" / "client-init.sh"
_ENGINES = Path(__file__).parent / "engines"


@dataclasses.dataclass
class DatabaseClient(Namespaced):
    """A Debian system that dumps are made on. Its root file system is an overlay: what it changes is its own."""

    @property
    def init(self) -> Sequence[str]:
        """Process 1."""
        return [str(_INIT), self.name, str(self.directory), str(client_tree())]

    def prepare(self) -> None:
        """Make the shared tree where it is missing."""
        client_tree()

    def engine(self, engine: str, verb: str, *words: str) -> str:
        """What a function of engines/<engine>.sh printed inside; LabError when it fails."""
        script = f'{(_ENGINES / f"{engine}.sh").read_text()}\n"$@"'
        return self.run(["timeout", "60", "bash", "-euc", script, "bash", verb, *words]).stdout
