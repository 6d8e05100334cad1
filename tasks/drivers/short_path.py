"""A folder under a short path, for one program that walks every folder of a path anew for each file.

rsync 3.5 does, against links that a client could put in its way: where trees lie eight folders deep, a third of a night
without changes is spent on the way to them (docs/performance.md). The short path is a bind mount in a mount namespace
of that program alone, so it ends with it, and nobody else sees it.
"""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PLACE = Path("/mnt")
"""Where it is put: what else is there is out of the program's sight."""
_BIND = 'mount --rbind -- "$1" "$2" && shift 2 && exec "$@"'


@dataclass(frozen=True)
class ShortPath:
    """A folder, and where the program finds it: where it lies, if nothing else is possible."""

    folder: Path
    place: Path

    def of(self, path: Path) -> Path:
        """The path of what is below the folder, for the program."""
        return self.place / path.relative_to(self.folder)

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The command that runs the program with the folder in its place."""
        if self.place == self.folder:
            return [*argv]
        return ["unshare", "--mount", "--", "sh", "-c", _BIND, "sh", str(self.folder), str(self.place), *argv]

    def told(self, said: str) -> str:
        """What the program said, with paths as all others know them."""
        return said.replace(f"{self.place}/", f"{self.folder}/")


def shorten(paths: Sequence[Path], beside: Sequence[str]) -> ShortPath:
    """The folder that holds all of `paths`, under a short path, unless a word of `beside` needs what is there."""
    folder = Path(os.path.commonpath(paths))
    hidden = any(f"{PLACE}/" in word for word in beside)
    return ShortPath(folder, folder if hidden or len(folder.parts) <= len(PLACE.parts) or not _possible() else PLACE)


@cache
def _possible() -> bool:
    """Whether this process may mount: root may, but not in every container."""
    try:
        trial = ShortPath(PLACE.parent, PLACE).argv(["true"])
        return subprocess.run(trial, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
