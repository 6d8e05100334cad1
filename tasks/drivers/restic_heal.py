"""Healing a restic repository whose files lie in a folder: what damaged packs had is stored anew, and they are removed.

Measured with restic 0.14: `rebuild-index`, `prune` and `backup` all leave a damaged pack in the index, so nothing of it
is ever stored again; and without it everything else in it would be lost too. So all is done in a second repository, of
hard links to all but the damaged packs. What points need of these is stored there: by a backup of a good copy, and of
the files that can still be restored. Only when nothing is missing there, the new packs are taken over and the damaged
ones removed; else the repository stays what it was. Killed anywhere, the next one begins anew.
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.drivers import process, restic, restic_repository
from tasks.drivers.process import Watch
from tasks.drivers.restic import Hit
from tasks.drivers.restic_repository import QUICK_S, Repository
from tasks.drivers.store import remove
from tasks.errors import CommandFailed, StoreFull

SHADOW = ".gbs-heal"
"""In the repository's own folder: a hard link needs the same file system, and restic looks only at what it knows."""
PATHS_AT_ONCE = 500
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Good:
    """A folder whose `names` may have what a pack of `host`'s snapshots lost, and one to bring files to.

    While the repository grows `on_store` is called, while files are brought `on_bring`: they raise when it is too much.
    """

    host: str
    folder: Path
    names: Sequence[str]
    scratch: Path
    deadline_s: float
    on_store: Watch = lambda: None
    on_bring: Watch = lambda: None


def heal(repository: Repository, packs: Collection[str], hits: Sequence[Hit] | None, good: Good) -> bool:
    """Whether all that snapshots need of the packs could be stored anew; `hits` is what that is, None if not known.

    Raises transient errors. After a failure the repository is what it was, or whole.
    """
    if repository.folder is None or not packs:
        return False  # restic 0.14 cannot remove a pack, and where it alone speaks to the store nor can we
    shadow = replace(repository, url=str(repository.folder / SHADOW), cache=None)
    try:
        left = [pack for pack in packs if not _from_cache(repository, repository.folder, pack)]
        if not left or hits is None:
            return not left
        _link(repository, repository.folder, left, good)
        restic_repository.run(shadow, "rebuild-index", deadline_s=good.deadline_s)
        if good.folder.is_dir():
            _store(shadow, good.folder, good.names, good)
        if missing := _missing(shadow, hits, good):
            _salvage(repository, shadow, missing, good)
            if missing := _missing(shadow, hits, good):
                lost = len({hit.blob for hit in missing})
                log.warning("%s cannot be healed: %d parts of files are nowhere else", repository.url, lost)
                return False
        restic_repository.run(shadow, "check", deadline_s=good.deadline_s)  # nothing that any snapshot needs is missing
        _adopt(repository, repository.folder, left, good)
    except (CommandFailed, StoreFull) as exc:
        if exc.transient:
            raise
        log.warning("%s cannot be healed: %s", repository.url, exc)
        return False
    finally:
        clear(repository)
    return True


def clear(repository: Repository) -> None:
    """Remove what one that was killed left."""
    if repository.folder is not None:
        remove(repository.folder / SHADOW, repository.watch)


def _do(repository: Repository, *argv: str, deadline_s: float = QUICK_S) -> str:
    """Run a program on the repository's own files."""
    return process.run(argv, deadline_s=deadline_s, watch=repository.watch, name=f"{argv[0]} in {repository.url}").text


def _place(folder: Path, pack: str) -> Path:
    return folder / "data" / pack[:2] / pack


def _from_cache(repository: Repository, folder: Path, pack: str) -> bool:
    """Put the cache's copy of a pack in its place, if it has a good one: of those with folders in them it has."""
    place = _place(folder, pack)
    cached = next(repository.cache.glob(f"*/data/{pack[:2]}/{pack}"), None) if repository.cache else None
    if cached is None:
        return False
    clear(repository)
    new = str(folder / SHADOW)
    _do(repository, "cp", "--", str(cached), new)
    # A pack is called by the sha256 of its content.
    if not _do(repository, "sha256sum", "--", new).removeprefix("\\").startswith(pack):
        return False
    _do(repository, "sync", "--", new)
    _do(repository, "mv", "--force", "-T", "--", new, str(place))
    return True


def _link(repository: Repository, folder: Path, without: Iterable[str], good: Good) -> None:
    """The second repository."""
    clear(repository)
    shadow = folder / SHADOW
    _do(repository, "mkdir", "--mode=0700", "--", str(shadow), str(shadow / "locks"))
    parts = [str(folder / name) for name in ("config", "data", "index", "keys", "snapshots")]
    argv = ["cp", "--archive", "--link", "--target-directory", str(shadow), "--", *parts]
    _do(repository, *argv, deadline_s=good.deadline_s)
    _do(repository, "rm", "--force", "--", *(str(_place(shadow, pack)) for pack in without))


def _store(shadow: Repository, folder: Path, names: Sequence[str], good: Good) -> None:
    """A backup into the second repository: of files that it has had before, those are read of which it lacks something.

    restic calls it incomplete for that reason alone; whether it brought enough is asked later.
    """
    restic_repository.run(
        shadow,
        *("backup", "--quiet", "--ignore-ctime", "--host", good.host, "--", *names),
        deadline_s=good.deadline_s,
        cwd=folder,
        on_wait=good.on_store,
        accept=lambda ended: ended.status in (0, restic.INCOMPLETE),
    )


def _missing(shadow: Repository, hits: Sequence[Hit], good: Good) -> list[Hit]:
    there = set(restic_repository.run(shadow, "list", "blobs", "--no-lock", deadline_s=good.deadline_s).text.split())
    return [hit for hit in hits if hit.blob not in there]


def _salvage(repository: Repository, shadow: Repository, missing: Sequence[Hit], good: Good) -> None:
    """Restore the files that lack something in the second repository, as far as they can be, and store them there.

    A file is cut into the same parts again: where a part ends depends on nothing before it.
    """
    parts: dict[tuple[str, str], set[str]] = {}
    for hit in missing:
        parts.setdefault((hit.snapshot, hit.path), set()).add(hit.blob)
    paths: dict[str, list[str]] = {}
    for snapshot, path in {frozenset(blobs): of for of, blobs in parts.items()}.values():
        paths.setdefault(snapshot, []).append(path)
    for snapshot, wanted in paths.items():
        for first in range(0, len(wanted), PATHS_AT_ONCE):
            remove(good.scratch)
            try:
                _bring(repository, snapshot, wanted[first : first + PATHS_AT_ONCE], good)
                if good.scratch.is_dir():
                    _store(shadow, good.scratch, ["."], good)
            finally:
                remove(good.scratch)


def _bring(repository: Repository, snapshot: str, paths: Sequence[str], good: Good) -> None:
    """Restore files of a snapshot, as far as they can be."""
    only = [restic.literal(path) for path in paths]
    try:
        restic.restore(repository, snapshot, good.scratch, only=only, deadline_s=good.deadline_s, on_wait=good.on_bring)
    except CommandFailed as exc:
        if exc.transient:
            raise  # any other failure is of some files: the others are there


def _adopt(repository: Repository, folder: Path, packs: Sequence[str], good: Good) -> None:
    """Take the new packs over, and remove the damaged ones: at no moment anything is missing in the index."""
    new = folder / SHADOW / "data"
    words = ["--archive", "--ignore-existing", f"--link-dest={new}", "--", f"{new}/", f"{folder / 'data'}/"]
    _do(repository, "rsync", *words, deadline_s=good.deadline_s)
    restic_repository.run(repository, "rebuild-index", deadline_s=good.deadline_s)
    _do(repository, "rm", "--force", "--", *(str(_place(folder, pack)) for pack in packs))
    restic_repository.run(repository, "rebuild-index", deadline_s=good.deadline_s)
