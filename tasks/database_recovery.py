"""Bring one database back from a night's dump: what `recover_database` does."""

import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks import places
from tasks.drivers import databases, permanent, rsync, ssh
from tasks.drivers.databases import recovering
from tasks.drivers.digest import sha256_file
from tasks.drivers.progress import reporting
from tasks.drivers.ssh import Shell
from tasks.errors import ConfigError, GbsError, IntegrityError, LeftBehind, RecoveryRefused, RestoreFailed, StoreError
from tasks.model.databases import Server
from tasks.model.manifest import DumpRecord
from tasks.model.night_choice import Night
from tasks.retryable import retryable

log = logging.getLogger(__name__)
QUICK_S = 60


@dataclass(frozen=True)
class Aim:
    """Where a dump is loaded: a client, its server, the database's name there."""

    client: str
    server: Server
    name: str
    stamp: str
    """The id of this recovery."""


def aim_at(client: str, night: Night, dump: DumpRecord, to: str, name: str, stamp: str) -> Aim:
    """What the inventory says of the engine on the client `to`.

    Raises RecoveryRefused for an engine that cannot have one database brought back, ConfigError when `to` has none, or
    for a name that cannot be.
    """
    if dump.engine not in recovering.RECOVERING:
        reason = f"one database of {dump.engine} cannot be brought back beside the others"
        fix = f"gbs recover files {client} {dump.path} --from {night.manifest.id}, then load it by hand: docs/how-to.md"
        raise RecoveryRefused(f"{dump.engine} database {dump.database!r}", reason, fix)
    system, _ = places.system_of(to)
    declared = next((one for one in system.databases if one.called == dump.called), None)
    if declared is None:
        raise ConfigError(f"{to} has no {dump.engine}", "inventory", f"declare it among the databases of {to}")
    recovering.require_name(dump.engine, name)
    return Aim(to, declared.server, name, stamp)


@retryable("look at database", "look for {aim.name} on {aim.client}")
def exists(aim: Aim) -> bool:
    """Whether a database of that name is there; RestoreFailed when its server does not answer."""
    with ssh.connect(places.recovery_target_of(aim.client)) as shell:
        return recovering.is_there(shell, aim.server, aim.name)


def in_the_way(aim: Aim, reason: str = "it exists") -> RecoveryRefused:
    """Why it is not loaded."""
    fix = "--replace keeps the old one aside; or give another name with --as"
    return RecoveryRefused(f"{aim.server.engine} database {aim.name!r} on {aim.client}", reason, fix)


def _sha256_of(dump: Path, expected: str) -> str:
    """IntegrityError when it is not there, StoreError when it cannot be read: that is no damage."""
    place = places.permanent()
    if not permanent.reading(place, dump, dump.is_file):
        raise IntegrityError(str(dump), expected, "nothing; take another night with --from")
    try:
        return permanent.reading(place, dump, sha256_file, dump)
    except OSError as exc:
        raise StoreError(str(dump), f"cannot be read: {exc.strerror}") from exc


@retryable("send dump", "send {dump.engine} {dump.database} to {aim.client}")
def send(folder: Path, dump: DumpRecord, aim: Aim) -> DumpRecord:
    """The dump as it lies on the client now; IntegrityError when the night's is damaged."""
    local = folder / "data" / dump.path.lstrip("/")
    found = _sha256_of(local, dump.sha256)
    if found != dump.sha256:
        raise IntegrityError(str(local), dump.sha256, f"{found}; take another night with --from")
    there = _folder(aim) / PurePosixPath(dump.path).name
    target = places.recovery_target_of(aim.client)
    with ssh.connect(target) as shell:
        shell.run(["mkdir", "-p", "-m", "700", "--", str(there.parent)], deadline_s=QUICK_S)
    with reporting(log, f"send {dump.database} to {aim.client}") as progress:
        deadline_s = places.system_of(aim.client)[1].transfer_deadline_s
        rsync.send_file(target, local, str(there), deadline_s=deadline_s, on_progress=progress.update)
    return dump.model_copy(update={"path": str(there)})


@dataclass
class _Change:
    """What was done so far to what has the name, for its undoing."""

    old: DumpRecord | str | None
    """What the old database is kept as: its dump, or its other name."""
    tables: int | None = None
    """How many the old one had before it was to be dropped; None of one that was not."""
    cleared: bool = False
    """The old one no longer has the name."""
    made: bool = False
    """The new one has it."""

    @property
    def kept(self) -> str | None:
        """What operators read for the old one."""
        return self.old.path if isinstance(self.old, DumpRecord) else self.old

    @property
    def undo(self) -> str:
        """What an operator does about it."""
        if self.old is None:
            return "drop it, it is not whole"
        back = f"drop what has its name, and bring back the old one, kept as {self.kept}"
        if self.tables is None or self.cleared:
            return back
        return f"leave it if it has its {self.tables} tables; else {back}"


@retryable("load database", "load {aim.name} on {aim.client}", retries=0)
def load(dump: DumpRecord, aim: Aim, *, replace: bool) -> tuple[int, str | None]:
    """How many tables came back, and where the old database of that name is now, None when there was none.

    RecoveryRefused when there is one and it is not to be replaced, or cannot be. After a failure the old one is what it
    was: RestoreFailed says what did not load, LeftBehind what could not be undone.
    """
    deadline_s = places.system_of(aim.client)[1].dump_deadline_s
    with ssh.connect(places.recovery_target_of(aim.client)) as shell, reporting(log, f"load {aim.name}"):
        change = _Change(_kept_as(shell, aim, deadline_s, replace=replace))
        try:
            _clear(shell, aim, change, deadline_s)
            like = change.old if isinstance(change.old, str) else None
            recovering.load(shell, aim.server, dump, aim.name, deadline_s, like=like)
            change.made = True
            found = recovering.tables(shell, aim.server, aim.name, deadline_s)
            if dump.tables is not None and found != dump.tables:
                called = f"{dump.engine} database {dump.database!r}"
                reason = f"{found} tables came back, {dump.tables} were counted in the night's proof"
                raise RestoreFailed(called, reason)
        except BaseException as exc:
            _take_back(shell, aim, change, deadline_s, exc)
            raise
    return found, change.kept


def _kept_as(shell: Shell, aim: Aim, deadline_s: float, *, replace: bool) -> DumpRecord | str | None:
    """The name that the old database will have, or its dump where the engine cannot rename; None when there is none."""
    if not recovering.is_there(shell, aim.server, aim.name):
        return None
    if not replace:
        raise in_the_way(aim)
    names = [aim.name] if aim.server.engine == "sqlite" else []
    size_bytes = databases.list_databases(shell, aim.server, names).get(aim.name)
    if size_bytes is None:
        raise in_the_way(aim, "it is the engine's own, takes no connections or has another spelling: give --as")
    if recovering.can_rename(aim.server.engine):
        return recovering.aside_name(aim.server.engine, aim.name, aim.stamp)
    return databases.dump_database(shell, aim.server, aim.name, size_bytes, str(_folder(aim, "replaced")), deadline_s)


def _clear(shell: Shell, aim: Aim, change: _Change, deadline_s: float) -> None:
    """Put the old database aside."""
    if isinstance(change.old, DumpRecord):
        change.tables = recovering.tables(shell, aim.server, aim.name, deadline_s)
        recovering.drop(shell, aim.server, aim.name, deadline_s)
    elif change.old is not None:
        recovering.rename(shell, aim.server, aim.name, change.old, deadline_s)
    if change.old is not None:
        change.cleared = True
        log.info("%s of %s is kept as %s", aim.name, aim.client, change.kept)


def _take_back(shell: Shell, aim: Aim, change: _Change, deadline_s: float, cause: BaseException) -> None:
    """Give the name back to the old database; what broke off in the middle may or may not have been done."""
    old = change.old
    try:
        if change.made:
            recovering.drop(shell, aim.server, aim.name, deadline_s)
        if isinstance(old, DumpRecord) and change.cleared:
            recovering.load(shell, aim.server, old, aim.name, deadline_s)
        elif isinstance(old, DumpRecord) and not _is_whole(shell, aim, change, deadline_s):
            databases.restore(shell, aim.server, [old], deadline_s)
        elif isinstance(old, str) and recovering.is_there(shell, aim.server, old):
            recovering.rename(shell, aim.server, old, aim.name, deadline_s)
        elif isinstance(old, str) and (change.cleared or not recovering.is_there(shell, aim.server, aim.name)):
            raise RestoreFailed(f"{aim.server.engine} database {old!r} on {aim.client}", "it is not there any more")
    except GbsError as exc:
        what = f"database {aim.name} of {aim.client}"
        raise LeftBehind(what, f"{cause}; then {exc}", change.undo) from exc


def _is_whole(shell: Shell, aim: Aim, change: _Change, deadline_s: float) -> bool:
    """Whether a drop that failed took nothing: what was written since the old one was dumped is in it alone.

    MariaDB drops the tables first, one by one; a count that grew is somebody's new table.
    """
    if change.tables is None:
        return True  # it did not come to the drop
    there = recovering.is_there(shell, aim.server, aim.name)
    return there and recovering.tables(shell, aim.server, aim.name, deadline_s) >= change.tables


@retryable("remove dump", "remove the dump from {aim.client}", retries=1)
def remove(aim: Aim) -> None:
    """Remove the dump that was sent; how the load ended is worth more than that it cannot be."""
    with ssh.connect(places.recovery_target_of(aim.client)) as shell:
        shell.run(["rm", "-rf", "--", str(_folder(aim))], deadline_s=QUICK_S)


def _folder(aim: Aim, what: str = "recovered") -> PurePosixPath:
    system, _ = places.system_of(aim.client)
    return PurePosixPath(system.dump_folder, f"{what}-{aim.stamp}")
