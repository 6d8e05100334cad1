"""Files of a night on their way back: what there is, whether it is whole, what the destination has, and the proof."""

import os
import stat
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.drivers import rsync
from tasks.drivers.digest import listing_line, opened, sha256_of
from tasks.drivers.listings import is_below, lines_of
from tasks.drivers.night_changes import proven
from tasks.drivers.ssh import Shell
from tasks.errors import AccessDenied, CommandFailed, IntegrityError
from tasks.model.file_recovery import Kind
from tasks.model.manifest import LISTING, NightManifest

QUICK_S = 60
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_LOOK = """
root=$1
shift
for word do
    path=$(printf '%b.' "$word")
    path=${path%.}
    if [ -L "$root/$path" ]; then echo l; elif [ -d "$root/$path" ]; then echo d
    elif [ -e "$root/$path" ]; then echo f; else echo n; fi
done
"""
_CHECK = """
cd -- "$1"
sha256sum --check --quiet --strict -- "$2" || echo "status $?"
rm -f -- "$2"
"""


@dataclass(frozen=True)
class Selection:
    """What a night has at the paths."""

    files: dict[bytes, str]
    """Regular files: path without a leading slash → sha256."""
    size_bytes: int
    missing: tuple[str, ...]
    links: dict[str, str]
    """Of the missing ones, those that a link of the client's is in the way of: path → the link, and where it leads."""


@dataclass(frozen=True)
class Damage:
    """A file that is not what the listing says."""

    path: bytes
    expected: str
    found: str


def examine(folder: Path, manifest: NightManifest, paths: Sequence[str]) -> Selection:
    """What the night, which lies in `folder`, has at the paths; IntegrityError for a listing that is not its own."""
    files = lines_of(proven(folder / LISTING, manifest), paths)
    missing, links = [], {}
    with opened(folder / "data") as data:
        for path in paths:
            if (link := _link_above(data, path)) is not None:
                links[path] = link
                missing.append(path)
            elif _status(data, os.fsencode(path or ".")) is None and not _listed(files, path):
                missing.append(path)
        sizes = (_status(data, path) for path in files)
        size_bytes = sum(status.st_size for status in sizes if status is not None)
    return Selection(files, size_bytes, tuple(missing), links)


def _listed(files: Mapping[bytes, str], path: str) -> bool:
    """A file that is gone from the night's tree, but not from its listing, is damage: it is no missing path."""
    return any(is_below(name, os.fsencode(path)) for name in files)


def _link_above(data: int, path: str) -> str | None:
    parts = path.split("/")
    for depth in range(1, len(parts)):
        above = "/".join(parts[:depth])
        status = _status(data, os.fsencode(above))
        if status is not None and stat.S_ISLNK(status.st_mode):
            return f"/{above} is a link to {os.readlink(os.fsencode(above), dir_fd=data).decode('utf-8', 'replace')}"
    return None


def _status(data: int, path: bytes) -> os.stat_result | None:
    with suppress(OSError):
        return os.stat(path, dir_fd=data, follow_symlinks=False)
    return None


def damaged(root: Path, files: Mapping[bytes, str]) -> list[Damage]:
    """Those of the files below `root` that are not as they should be: every one is read."""
    found = []
    with opened(root) as folder:
        for path, expected in files.items():
            content = _sha256(folder, path)
            if content != expected:
                found.append(Damage(path, expected, content))
    return found


def _sha256(root: int, path: bytes) -> str:
    """The sha256 of a regular file; what is there else, or what the system said, when there is none."""
    folder, _, name = path.rpartition(b"/")
    try:
        with opened(folder or b".", root) as parent:
            handle = os.open(name, _READ, dir_fd=parent)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            return "no regular file"
        return sha256_of(handle)
    except OSError as exc:
        return exc.strerror or "nothing"


def whole_elsewhere(folders: Iterable[tuple[str, Path, NightManifest]], damage: Damage) -> tuple[str, bool] | None:
    """The first night in which the damaged file is whole, and whether it is the same version; None when there is none.

    Nights that keep it as a hard link share the damage, which is why it is read in each.
    """
    other = None
    for night, folder, manifest in folders:
        try:
            expected = lines_of(proven(folder / LISTING, manifest), [os.fsdecode(damage.path)]).get(damage.path)
            if expected is None or (expected != damage.expected and other is not None):
                continue
            with opened(folder / "data") as data:
                whole = _sha256(data, damage.path) == expected
        except (OSError, IntegrityError):
            continue  # a night that cannot be read is no good copy either
        if whole and expected == damage.expected:
            return night, True
        if whole:
            other = night
    return (other, False) if other else None


def kinds_here(root: Path, paths: Sequence[str]) -> dict[str, Kind]:
    """What is at paths below a folder of this server."""
    return {path: _kind(root / path) for path in paths}


def _kind(path: Path) -> Kind:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return Kind.NOTHING
    return Kind.LINK if stat.S_ISLNK(mode) else Kind.FOLDER if stat.S_ISDIR(mode) else Kind.OTHER


def kinds_there(shell: Shell, root: str, paths: Sequence[str]) -> dict[str, Kind]:
    """What is at paths below a folder of a client."""
    # A command line is text, and names of files need not be.
    words = ("".join(f"\\0{byte:03o}" for byte in os.fsencode(path)) for path in paths)
    command = ["sh", "-euc", _LOOK, "gbs", root.rstrip("/"), *words]
    answers = shell.run(command, deadline_s=QUICK_S, name="a look at the destination").stdout.split()
    return dict(zip(paths, map(Kind, answers), strict=True))


def require_writer(shell: Shell, identity: str) -> None:
    """AccessDenied unless commands run as root there: a key that is restricted to reading cannot write files back."""
    fix = "declare a key of root's as recovery_identity of the client, or recover to a folder of this server"
    try:
        user = shell.run(["id", "-u"], deadline_s=QUICK_S).stdout.strip()
    except CommandFailed as exc:
        reason = f"the key of identity {identity!r} may not write there ({exc.args[2] or exc})"
        raise AccessDenied(shell.target.name, reason, fix) from exc
    if user != "0":
        reason = f"{shell.target.user} of identity {identity!r} is not root and cannot give files their owners"
        raise AccessDenied(shell.target.name, reason, fix)


def damaged_there(shell: Shell, root: str, folder: str, files: Mapping[bytes, str], deadline_s: float) -> list[str]:
    """What sha256sum --check of the client says of files below `root` that are not as they should be.

    The list of them lies in `folder` of the client meanwhile.
    """
    with tempfile.NamedTemporaryFile(prefix="gbs-sums-") as sums:
        sums.writelines(listing_line(sha256, path) for path, sha256 in files.items())
        sums.flush()
        there = f"{folder}/{Path(sums.name).name}"
        shell.run(["mkdir", "-p", "-m", "700", "--", folder], deadline_s=QUICK_S)
        rsync.send_file(shell.target, Path(sums.name), there, deadline_s=deadline_s)
    command = ["sh", "-euc", _CHECK, "gbs", root, there]
    return shell.run_to_end(command, deadline_s=deadline_s, name="sha256sum").stdout.splitlines()
