"""Where recovered files go, and what must not be in their way."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict

from tasks.errors import ConfigError, RecoveryRefused
from tasks.model.names import one_line


class Kind(StrEnum):
    """What is at a path, itself: links are not followed."""

    FOLDER = "d"
    LINK = "l"
    OTHER = "f"
    NOTHING = "n"


@dataclass(frozen=True)
class Destination:
    """A folder of this server, or of a client: paths of the night are made below it."""

    folder: str
    client: str | None = None

    @property
    def words(self) -> str:
        """What operators read for it."""
        return f"{self.client}:{self.folder}" if self.client else self.folder

    def of(self, path: str) -> str:
        """Where a path without a leading slash goes."""
        return f"{self.folder.rstrip('/')}/{path}"


@dataclass(frozen=True)
class Placed:
    """What one rsync copies: names below a folder that the destination has already, or is the destination itself."""

    anchor: str
    """From the root of the night, without slashes around it; empty for the root."""
    names: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """What goes back: the tree it lies in, and its regular files as they must arrive."""

    source: str
    """A night's id, or `image ID`."""
    tree: Path
    files: Mapping[bytes, str]
    """Path without a leading slash → sha256."""
    size_bytes: int
    fake_super: bool = False
    warnings: tuple[str, ...] = ()


class RecoveredFiles(BaseModel):
    """Files that were brought back, or would be (dry run)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    client: str
    source: str
    """The night's id, or `image ID`."""
    to: str
    paths: tuple[str, ...]
    files: int
    """Regular files."""
    size_bytes: int
    replaced: tuple[str, ...] = ()
    """What was there and is not the same; rsync's own words for each."""
    kept_aside: str | None = None
    """Where that is now; None when nothing but attributes differed, which are not kept."""
    warnings: tuple[str, ...] = ()
    verified: int
    """Files whose sha256 at the destination is the listing's."""
    dry_run: bool = False


def only_attributes(differing: str) -> bool:
    """Whether rsync's words tell of other owners, modes, times, ACLs or xattrs alone: it keeps no copy of the old."""
    return differing.startswith(".")


def destination(text: str, clients: Collection[str]) -> Destination:
    """`/FOLDER` or `./FOLDER` of this server, or `CLIENT:/FOLDER`; ConfigError for anything else."""
    fix = "give an absolute FOLDER of this server, or CLIENT:/FOLDER (CLIENT:/ puts files where they were)"
    name, colon, folder = text.partition(":")
    if not text.startswith("/") and colon and name in clients:
        if not folder.startswith("/") or ".." in folder.split("/"):
            raise ConfigError(f"{text!r} names no folder of {name}", "--to", fix)
        return Destination("/" + "/".join(part for part in folder.split("/") if part not in ("", ".")), name)
    if not text.startswith("/"):
        raise ConfigError(f"{text!r} is no place for files", "--to", fix)
    folder = str(PurePosixPath(text))
    if ".." in PurePosixPath(folder).parts or folder.strip("/") == "":
        raise ConfigError(f"{text!r} is no place for files", "--to", fix)
    return Destination(folder)


def wanted(paths: Sequence[str]) -> tuple[str, ...]:
    """The paths without slashes around them, none below another one; ConfigError for one that is not absolute."""
    found = []
    for path in paths:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not path.startswith("/") or ".." in parts or "\0" in path:
            raise ConfigError("not a path of the client", one_line(repr(path)), "write it from / on, without ..")
        found.append("/".join(parts))
    if not found:
        raise ConfigError("no paths", "recover files", "name the files or folders, from / on")
    unique = sorted(set(found))
    return tuple(path for path in unique if not any(_holds(other, path) for other in unique if other != path))


def _holds(folder: str, path: str) -> bool:
    return not folder or path.startswith(folder + "/")


def on_the_way(paths: Sequence[str]) -> tuple[str, ...]:
    """The folders above the paths, outermost first, then the paths: what must be looked at before anything is made."""
    above = {"/".join(path.split("/")[:depth]) for path in paths for depth in range(1, path.count("/") + 1)}
    return (*sorted(above - set(paths)), *paths)


def placed(to: Destination, paths: Sequence[str], kinds: Mapping[str, Kind]) -> list[Placed]:
    """What is copied below which folder that is there already, so that no folder above a path is changed.

    RecoveryRefused when a link, or what is no folder, stands where a path leads through: it may lead anywhere.
    """
    found: dict[str, list[str]] = {}
    for path in paths:
        parts = path.split("/")
        depth = 0
        while depth < len(parts) - 1:
            above = "/".join(parts[: depth + 1])
            if kinds[above] is Kind.NOTHING:
                break
            if kinds[above] is not Kind.FOLDER:
                what = "a link" if kinds[above] is Kind.LINK else "no folder"
                fix = "recover to another folder with --to, or move it away"
                raise RecoveryRefused(one_line(f"/{path}"), one_line(f"{to.of(above)} is {what} there"), fix)
            depth += 1
        found.setdefault("/".join(parts[:depth]), []).append("/".join(parts[depth:]) or ".")
    return [Placed(anchor, tuple(names)) for anchor, names in found.items()]
