"""Bring files of a night back, to a folder of this server or to a client: what `recover_files` does."""

import logging
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tasks import places
from tasks.drivers import file_recovery, permanent, rsync_back, ssh
from tasks.drivers.file_recovery import Damage, Selection
from tasks.drivers.listings import shown
from tasks.drivers.progress import reporting
from tasks.drivers.rsync_back import Return
from tasks.drivers.space import require_space
from tasks.errors import ConfigError, IntegrityError, NothingToRecover, RecoveryRefused
from tasks.model.file_recovery import Chosen, Destination, Kind, Placed, destination, on_the_way, placed
from tasks.model.names import new_id, one_line, slug
from tasks.model.night_choice import Night
from tasks.model.platform import Platform
from tasks.retryable import retryable

log = logging.getLogger(__name__)
NAMED = 5
COPY_DEADLINE_S = 24 * 3600
RECOVERED = "recovered"
"""What comes back to the store lies below it."""


def choose_destination(client: str, to: str | None, paths: Sequence[str], *, owners_kept: bool) -> Destination:
    """Where files go: what `to` says, else a new folder of the store that only root can enter.

    ConfigError for a place that cannot be, or when the store cannot have owners and `to` says nothing.
    """
    store = places.store()
    if to is not None:
        found = destination(to, places.inventory().systems)
        if found.client is None:
            _require_no_backup_there(found, paths)
        return found
    if not owners_kept:
        fix = "give --to FOLDER, on a file system that has owners and xattrs"
        raise ConfigError("the store cannot have owners", str(store.root), fix)
    above = store.root / RECOVERED
    above.mkdir(mode=0o700, exist_ok=True)  # a client's secrets, and its programs with setuid, are in what comes back
    return Destination(str(above / slug(client) / new_id(datetime.now(UTC))))


def _require_no_backup_there(to: Destination, paths: Sequence[str]) -> None:
    """ConfigError where files would come among backups: what is there is changed by GBS alone."""
    place, root = places.permanent(), places.store().root.resolve()
    # By the child that can be killed: on the way there may be a server that does not answer.
    permanent_root = Path(permanent.at(place, os.path.realpath, place.path))
    for path in paths:
        real = Path(permanent.at(place, os.path.realpath, to.of(path)))
        for backups in (root, permanent_root):
            if real.is_relative_to(root / RECOVERED):
                continue
            if real.is_relative_to(backups) or backups.is_relative_to(real):
                fix = f"give a folder elsewhere, or one below {root / RECOVERED}"
                raise ConfigError(f"{to.of(path)} is among the backups in {backups}", "--to", fix)


@retryable("select files", "select files of {client} in night {night.manifest.id}", retries=0)
def select(client: str, night: Night, folder: Path, paths: Sequence[str]) -> Selection:
    """What the night has at the paths; NothingToRecover when it does not have one of them."""
    found = permanent.reading(places.permanent(), folder, file_recovery.examine, folder, night.manifest, paths)
    if found.missing:
        path = found.missing[0]
        hint = (
            f"{found.links[path]}: ask for the path there"
            if path in found.links
            else (f"night {night.manifest.id} does not have it; see: gbs find {client} {path.rpartition('/')[2]}")
        )
        raise NothingToRecover(one_line(f"/{path} of {client}"), one_line(hint))
    return found


@retryable("check files", "check files of {client} in night {night.manifest.id}", retries=0)
def check_source(client: str, night: Night, folder: Path, chosen: Selection, nights: Sequence[Night]) -> None:
    """IntegrityError, with the night that has it whole, when a file is not what the night's listing says."""
    with reporting(log, f"read {len(chosen.files)} files of night {night.manifest.id}"):
        damages = permanent.reading(places.permanent(), folder, file_recovery.damaged, folder / "data", chosen.files)
    if not damages:
        return
    others = [
        (other.manifest.id, other.folder, other.manifest)
        for other in nights
        if other.folder is not None and other.folder != folder
    ]
    first = damages[0]
    whole = permanent.at(places.permanent(), file_recovery.whole_elsewhere, others, first)
    raise IntegrityError(one_line(str(folder / "data") + shown(first.path)), first.expected, _advice(damages, whole))


def _advice(damages: Sequence[Damage], whole: tuple[str, bool] | None) -> str:
    more = f" (and {len(damages) - 1} more files are damaged)" if len(damages) > 1 else ""
    if whole is None:
        return f"{damages[0].found}{more}; no other night has it whole"
    night, same = whole
    what = "the same version" if same else "another version of it"
    return f"{damages[0].found}{more}; nothing was written; night {night} has {what} whole: --from {night}"


@retryable("look at destination", "look at {to.words}")
def look(to: Destination, paths: Sequence[str], size_bytes: int) -> tuple[list[Placed], bool]:
    """What is copied where, and whether anything is there at the paths; nothing is changed.

    Raises RecoveryRefused (a link in the way, a client that is no Linux), AccessDenied, StoreFull.
    """
    looked_at = on_the_way(paths)
    if to.client is None:
        above = next(folder for folder in (Path(to.folder), *Path(to.folder).parents) if folder.is_dir())
        require_space(above, size_bytes, places.reserve_bytes())
        kinds = file_recovery.kinds_here(Path(to.folder), looked_at)
    else:
        system, _ = places.system_of(to.client)
        if system.platform is not Platform.LINUX or not system.ssh:
            fix = "recover to a folder of this server and copy it from there"
            raise RecoveryRefused(f"files to {to.client}", "files are written back over ssh to Linux only", fix)
        with ssh.connect(places.recovery_target_of(to.client)) as shell:
            file_recovery.require_writer(shell, system.recovery_identity or system.identity)
            kinds = file_recovery.kinds_there(shell, to.folder, looked_at)
    return placed(to, paths, kinds), any(kinds[path] is not Kind.NOTHING for path in paths)


def returns(
    chosen: Chosen, to: Destination, where: Sequence[Placed], *, compare: bool, aside: str | None
) -> list[Return]:
    """The copies to make."""
    target = places.recovery_target_of(to.client) if to.client else None
    return [Return(chosen.tree, one, to.folder, target, chosen.fake_super, compare, aside) for one in where]


def aside_of(to: Destination) -> str:
    """Where what is replaced is kept at the destination."""
    name = f"replaced-{new_id(datetime.now(UTC))}"
    if to.client is None:
        return f"{to.folder}/.gbs-{name}"
    system, _ = places.system_of(to.client)
    return f"{system.dump_folder}/{name}"


@retryable("compare with destination", "compare with {to.words}")
def differing(to: Destination, copies: Sequence[Return]) -> list[str]:
    """What is there and is not the same."""
    found: list[str] = []
    with reporting(log, f"compare with {to.words}"):
        for given in copies:
            found += rsync_back.differing(given, deadline_s=_deadline_s(to), watch=_watch(given.tree))
    return found


@retryable("copy files", "copy files to {to.words}")
def copy(to: Destination, copies: Sequence[Return]) -> None:
    """Copy what goes back; a copy that broke goes on when called again."""
    if to.client is None:
        Path(to.folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    else:
        with ssh.connect(places.recovery_target_of(to.client)) as shell:
            shell.run(["mkdir", "-p", "--", to.folder], deadline_s=file_recovery.QUICK_S)
    with reporting(log, f"copy files to {to.words}") as progress:
        for given in copies:
            rsync_back.copy(given, deadline_s=_deadline_s(to), on_progress=progress.update, watch=_watch(given.tree))


@retryable("check what came back", "check files at {to.words}", retries=0)
def check_destination(to: Destination, chosen: Chosen) -> int:
    """How many files were read at the destination; IntegrityError unless each is what the night's listing says."""
    if not chosen.files:
        return 0
    with reporting(log, f"read {len(chosen.files)} files at {to.words}"):
        if to.client is None:
            damages = file_recovery.damaged(Path(to.folder), chosen.files)
            if damages:
                first = damages[0]
                raise IntegrityError(one_line(to.of(shown(first.path)[1:])), first.expected, first.found)
            return len(chosen.files)
        system, policy = places.system_of(to.client)
        with ssh.connect(places.recovery_target_of(to.client)) as shell:
            said = file_recovery.damaged_there(
                shell, to.folder, system.dump_folder, chosen.files, policy.transfer_deadline_s
            )
    if said:
        raise IntegrityError(to.words, "what sha256sum --check takes", one_line("; ".join(said[:NAMED])))
    return len(chosen.files)


def _deadline_s(to: Destination) -> float:
    return places.system_of(to.client)[1].transfer_deadline_s if to.client else COPY_DEADLINE_S


def _watch(tree: Path) -> Callable[[], None] | None:
    place = places.permanent()
    return permanent.watching(place) if tree.is_relative_to(place.path) else None
