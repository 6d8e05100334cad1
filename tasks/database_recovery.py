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
from tasks.errors import ConfigError, GbsError, IntegrityError, LeftBehind, RecoveryRefused, RestoreFailed
from tasks.model.databases import Server
from tasks.model.manifest import DumpRecord
from tasks.model.names import one_line
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

    Raises RecoveryRefused for an engine that cannot have one database brought back, ConfigError when `to` has none.
    """
    if dump.engine not in recovering.RECOVERING:
        reason = f"one database of {dump.engine} cannot be brought back beside the others"
        fix = f"gbs recover files {client} {dump.path} --from {night.manifest.id}, then load it by hand: docs/how-to.md"
        raise RecoveryRefused(f"{dump.engine} database {dump.database!r}", reason, fix)
    system, _ = places.system_of(to)
    declared = next((one for one in system.databases if one.called == dump.called), None)
    if declared is None:
        raise ConfigError(f"{to} has no {dump.engine}", "inventory", f"declare it among the databases of {to}")
    if dump.engine == "sqlite" and not name.startswith("/"):
        raise ConfigError(f"{name!r} is no file", "--as", "name a database of sqlite by its absolute path")
    return Aim(to, declared.server, name, stamp)


@retryable("look at database", "look for {aim.name} on {aim.client}")
def exists(aim: Aim) -> bool:
    """Whether a database of that name is there; DumpFailed when its server does not answer."""
    with ssh.connect(places.recovery_target_of(aim.client)) as shell:
        return _size_bytes(shell, aim) is not None


def _size_bytes(shell: Shell, aim: Aim) -> int | None:
    if aim.server.engine == "sqlite":
        if shell.run(["test", "-e", aim.name], deadline_s=QUICK_S, check=False).status != 0:
            return None
        return databases.list_databases(shell, aim.server, [aim.name])[aim.name]
    return databases.list_databases(shell, aim.server).get(aim.name)


@retryable("send dump", "send {dump.engine} {dump.database} to {aim.client}")
def send(folder: Path, dump: DumpRecord, aim: Aim) -> DumpRecord:
    """The dump as it lies on the client now; IntegrityError when the night's is damaged."""
    local = folder / "data" / dump.path.lstrip("/")
    place = places.permanent()
    try:
        far = local.is_relative_to(place.path)
        found = permanent.at(place, sha256_file, local) if far else sha256_file(local)
    except (OSError, GbsError) as exc:
        raise IntegrityError(str(local), dump.sha256, one_line(str(exc))) from exc
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


@retryable("load database", "load {aim.name} on {aim.client}", retries=0)
def load(dump: DumpRecord, aim: Aim) -> tuple[int, str | None]:
    """How many tables came back, and where the old database of that name is now, None when there was none.

    After a failure the old one is what it was: RestoreFailed says what did not load, LeftBehind what was not undone.
    """
    deadline_s = places.system_of(aim.client)[1].dump_deadline_s
    with ssh.connect(places.recovery_target_of(aim.client)) as shell, reporting(log, f"load {aim.name}"):
        old = _put_aside(shell, aim, deadline_s)
        try:
            kept = old if isinstance(old, str) else None
            recovering.load(shell, aim.server, dump, aim.name, deadline_s, like=kept)
            found = recovering.tables(shell, aim.server, aim.name, deadline_s)
            if dump.tables is not None and found != dump.tables:
                called = f"{dump.engine} database {dump.database!r}"
                reason = f"{found} tables came back, {dump.tables} were counted in the night's proof"
                raise RestoreFailed(called, reason)
        except BaseException as exc:
            _take_back(shell, aim, old, deadline_s, exc)
            raise
    return found, old.path if isinstance(old, DumpRecord) else old


def _put_aside(shell: Shell, aim: Aim, deadline_s: float) -> DumpRecord | str | None:
    """The old database under another name, or its dump where the engine cannot rename; None when there is none."""
    size_bytes = _size_bytes(shell, aim)
    if size_bytes is None:
        return None
    name = recovering.aside_name(aim.server.engine, aim.name, aim.stamp)
    if recovering.rename(shell, aim.server, aim.name, name, deadline_s):
        log.info("%s of %s is called %s now", aim.name, aim.client, name)
        return name
    folder = str(_folder(aim, "replaced"))
    kept = databases.dump_database(shell, aim.server, aim.name, size_bytes, folder, deadline_s)
    log.info("%s of %s is kept in %s", aim.name, aim.client, kept.path)
    recovering.drop(shell, aim.server, aim.name, deadline_s)
    return kept


def _take_back(shell: Shell, aim: Aim, old: DumpRecord | str | None, deadline_s: float, cause: BaseException) -> None:
    try:
        recovering.drop(shell, aim.server, aim.name, deadline_s)
        if old is None:
            return
        if isinstance(old, DumpRecord):
            recovering.load(shell, aim.server, old, aim.name, deadline_s)
        else:
            recovering.rename(shell, aim.server, old, aim.name, deadline_s)
    except GbsError as exc:
        what = f"database {aim.name} of {aim.client}"
        kept = old.path if isinstance(old, DumpRecord) else old
        undo = "drop it, it is not whole" if kept is None else f"drop it, and bring back the old one, kept as {kept}"
        raise LeftBehind(what, f"{cause}; then {exc}", undo) from exc


@retryable("remove dump", "remove the dump from {aim.client}", retries=1)
def remove(aim: Aim) -> None:
    """Remove the dump that was sent."""
    with ssh.connect(places.recovery_target_of(aim.client)) as shell:
        shell.run(["rm", "-rf", "--", str(_folder(aim))], deadline_s=QUICK_S)


def _folder(aim: Aim, what: str = "recovered") -> PurePosixPath:
    system, _ = places.system_of(aim.client)
    return PurePosixPath(system.dump_folder, f"{what}-{aim.stamp}")
