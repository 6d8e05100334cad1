"""Which mount holds a path, from the text of /proc/self/mountinfo (proc(5))."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

SOFT = frozenset({"soft", "softerr"})
"""Options of NFS mounts that give up: an error that a program does not look for is a lost write (nfs(5))."""
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A mount: where it is, what kind, what of, whether it may be written."""

    mountpoint: str
    fstype: str
    source: str
    read_only: bool
    root: str = "/"
    """Which folder of the file system is seen there."""
    device: str = ""
    """The file system's device number, as `major:minor`."""
    options: tuple[str, ...] = ()
    """Those of the file system, wherever it is mounted."""


def parse_mounts(text: str) -> list[Mount]:
    """The mounts, in the order in which they were made: a later one hides an earlier one at the same place."""
    mounts = []
    # The kernel escapes space, tab and line feed in names, and nothing else that Python would split at.
    for line in filter(None, text.split("\n")):
        left, _, right = line.partition(" - ")
        fields, (fstype, source, *options) = left.split(" "), right.split(" ")
        its_own = tuple(_plain(option) for option in options[0].split(",")) if options else ()
        mounts.append(
            Mount(
                mountpoint=_plain(fields[4]),
                fstype=fstype,
                source=_plain(source),
                read_only="ro" in fields[5].split(",") or "ro" in its_own,
                root=_plain(fields[3]),
                device=fields[2],
                options=its_own,
            )
        )
    return mounts


def mount_of(path: str, mounts: list[Mount]) -> Mount:
    """The mount that holds the absolute, link-free `path`."""
    above = {str(parent) for parent in (PurePosixPath(path), *PurePosixPath(path).parents)}
    deepest = max(len(mount.mountpoint) for mount in mounts if mount.mountpoint in above)
    return [mount for mount in mounts if mount.mountpoint in above and len(mount.mountpoint) == deepest][-1]


def _plain(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)
