"""The far site's GBS, which keeps its nights at the near one; and what runs in a process that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from tasks.drivers import restore_points
from tasks.drivers.permanent import PermanentPlace, prove
from tasks.model.retention import Rules
from tests.unit.points_site import Site

NIGHTS = (1, 2, 3)


def killed_rotate(root: Path, rules: Rules, renames: int) -> None:
    """Rotate, and die by SIGKILL after so many renames."""
    left, rename = iter(range(renames)), Path.rename

    def counted(self: Path, target: Path) -> Path:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.rename = counted  # type: ignore[method-assign, assignment]
    restore_points._rotate(root, root.parent, rules, datetime.now(UTC), 0)


def main(folder: Path) -> None:
    """Three nights; they begin when standard input ends."""
    from tests.lab.nfs_sites import NEAR_EXPORT, slow_night

    place = PermanentPlace(Path("/mnt/near"), "near-1", "nfs4", NEAR_EXPORT, "vers=4.2")
    place.path.mkdir()
    prove(place)
    (folder / "other").mkdir()
    site = Site(folder / "other", far=place)
    print("ready", flush=True)
    sys.stdin.read()
    for number in NIGHTS:
        slow_night(site, number)
        site.sync()
        site.rotate()
    subprocess.run(["umount", str(place.path)], check=True)
    place.path.rmdir()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
