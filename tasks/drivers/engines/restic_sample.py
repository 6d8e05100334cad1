"""A few files of a snapshot, brought to be looked at beside those of another night."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.drivers import restic
from tasks.drivers.restic_repository import QUICK_S, Repository
from tasks.drivers.space import require_space
from tasks.errors import CommandFailed, IntegrityError, is_transient
from tasks.model.manifest import LISTING

LARGEST_BYTES = 4 << 20
"""A larger file is not brought: restic restores it whole, and a sample only looks at three places of it."""
LONGEST_PATH = 4000
"""Behind the name of the folder that it is brought to."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SnapshotSample:
    """A point that is a snapshot, brought below `folder` as far as it is asked for; see `night_changes.Before`."""

    repository: Repository
    snapshot: str
    folder: Path
    reserve_bytes: int
    deadline_s: float

    def listing(self) -> Path:
        """As the protocol says."""
        try:
            restic.restore(self.repository, self.snapshot, self.folder, only=[f"/{LISTING}"], deadline_s=QUICK_S)
        except CommandFailed as exc:
            if not restic.is_damage(exc):
                raise
            raise IntegrityError(f"snapshot {self.snapshot[:8]}", "a listing", str(exc)) from exc
        return self.folder / LISTING

    def files(self, paths: Sequence[bytes]) -> Path:
        """Small ones only; StoreFull when the store has no room for them."""
        wanted = {f"/data/{path.decode('utf-8', 'surrogateescape')}" for path in paths if len(path) < LONGEST_PATH}
        sizes = restic.sizes(self.repository, self.snapshot, wanted, self.deadline_s)
        small = {path: size for path, size in sizes.items() if size <= LARGEST_BYTES}
        data = self.folder / "data"
        data.mkdir()
        if small:
            require_space(self.folder, sum(small.values()), self.reserve_bytes)
            self._bring([*small])
        return data

    def _bring(self, paths: Sequence[str]) -> None:
        try:
            restic.restore(self.repository, self.snapshot, self.folder, only=paths, deadline_s=self.deadline_s)
        except CommandFailed as exc:
            if is_transient(exc):
                raise
            log.warning("snapshot %s: not all of a sample can be read: %s", self.snapshot[:8], exc)
