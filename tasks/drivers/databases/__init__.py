"""Database dumps on the client: one small contract, one module per engine.

A dump is written beside its old self, proves itself by its own means, and only then takes the old one's place; its
sha256 is made on the client. Nothing is piped, credentials are never on a command line: the engines are spoken to by
their superuser through the local socket.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

from tasks.drivers.databases.engine import Engine
from tasks.drivers.databases.mariadb import MARIADB
from tasks.drivers.databases.postgresql import POSTGRESQL
from tasks.drivers.ssh import Shell
from tasks.errors import CommandFailed, DumpFailed
from tasks.model.manifest import DumpRecord
from tasks.model.names import slug

SPACE_FACTOR = 1.1
EngineName = Literal["postgresql", "mariadb"]
QUERY_DEADLINE_S = 60

PREPARE_FOLDER = (
    'umask 077; mkdir -p -- "$1"; rm -f -- "$1"/*.partial; df -B1 --output=avail,iavail -- "$1" | tail -n 1'
)
PUBLISH = """
umask 077
test -s "$1.partial"
sync -- "$1.partial"
mv -f -- "$1.partial" "$1"
stat -c %s -- "$1"
sha256sum -- "$1"
"""


ENGINES: dict[EngineName, Engine] = {"postgresql": POSTGRESQL, "mariadb": MARIADB}


def script(text: str, *arguments: str) -> list[str]:
    """The argv that runs a constant script with arguments that never become code."""
    return ["sh", "-euc", text, "gbs", *arguments]


def list_databases(shell: Shell, engine: EngineName) -> list[str]:
    """The databases that the running server holds, without templates; DumpFailed when it does not answer."""
    try:
        output = shell.run(script(ENGINES[engine].databases), deadline_s=QUERY_DEADLINE_S, name=f"listing {engine}")
    except CommandFailed as exc:
        raise DumpFailed(f"{engine} on {shell.target.name}", _reason(exc)) from exc
    return sorted(bytes.fromhex(line).decode() for line in output.stdout.split())


def dump_database(shell: Shell, engine: EngineName, database: str, folder: str, deadline_s: float) -> DumpRecord:
    """Dump one database into `folder` of the client; the old dump stays until this one is good."""
    spoken = ENGINES[engine]
    path = str(PurePosixPath(folder, engine, f"{slug(database)}{spoken.suffix}"))
    called = f"{engine} database {database!r} on {shell.target.name}"
    try:
        size = shell.run(script(spoken.size, database), deadline_s=QUERY_DEADLINE_S, name=f"size of {database}")
        _require_space(shell, str(PurePosixPath(path).parent), int(size.stdout.strip() or 0), called)
        shell.run(script(spoken.dump, database, f"{path}.partial"), deadline_s=deadline_s, name=f"dump of {database}")
        shell.run(script(spoken.check, f"{path}.partial"), deadline_s=deadline_s, name=f"check of {database}'s dump")
        return _publish(shell, engine, "database", database, path)
    except (CommandFailed, ValueError) as exc:
        raise DumpFailed(called, _reason(exc)) from exc


def dump_accounts(shell: Shell, engine: EngineName, folder: str, deadline_s: float) -> DumpRecord:
    """Dump the server's roles or users; the same guarantees as `dump_database`."""
    spoken = ENGINES[engine]
    path = str(PurePosixPath(folder, engine, "accounts", "accounts.sql"))
    called = f"{engine} accounts on {shell.target.name}"
    try:
        _require_space(shell, str(PurePosixPath(path).parent), 1 << 20, called)
        shell.run(script(spoken.dump_accounts, f"{path}.partial"), deadline_s=deadline_s, name="dump of accounts")
        shell.run(script(spoken.check_accounts, f"{path}.partial"), deadline_s=deadline_s, name="check of accounts")
        return _publish(shell, engine, "accounts", "", path)
    except (CommandFailed, ValueError) as exc:
        raise DumpFailed(called, _reason(exc)) from exc


def restore(shell: Shell, dumps: Sequence[DumpRecord], deadline_s: float) -> None:
    """Bring back accounts, then databases, from the dumps that lie on the system behind `shell`.

    Each dump's sha256 is compared first. Raises DumpFailed naming the dump that does not match or does not load.
    """
    for dump in sorted(dumps, key=lambda dump: dump.kind):
        called = f"{dump.engine} {dump.kind} {dump.database!r} on {shell.target.name}"
        spoken = ENGINES[dump.engine]
        try:
            found = shell.run(["sha256sum", "--", dump.path], deadline_s=deadline_s).stdout.lstrip("\\")[:64]
            if found != dump.sha256:
                raise DumpFailed(called, f"the dump {dump.path} is not the one that was made: sha256 differs")
            if dump.kind == "accounts":
                shell.run(script(spoken.restore_accounts, dump.path), deadline_s=deadline_s, name="restore of accounts")
            else:
                command = script(spoken.restore, dump.database, dump.path)
                shell.run(command, deadline_s=deadline_s, name=f"restore of {dump.database}")
        except CommandFailed as exc:
            raise DumpFailed(called, f"restore: {_reason(exc)}") from exc


def is_ready(shell: Shell, engine: EngineName) -> bool:
    """Whether the server accepts connections now."""
    return shell.run(script(ENGINES[engine].ready), deadline_s=QUERY_DEADLINE_S, check=False).status == 0


def _require_space(shell: Shell, folder: str, estimate_bytes: int, called: str) -> None:
    output = shell.run(script(PREPARE_FOLDER, folder), deadline_s=QUERY_DEADLINE_S, name="dump folder")
    avail, _, iavail = output.stdout.strip().partition(" ")
    needed = int(estimate_bytes * SPACE_FACTOR)
    if int(avail) < needed or (iavail.strip().isdigit() and int(iavail) < 100):
        raise DumpFailed(called, f"{folder} has {avail} bytes free, the dump may need {needed}")


def _publish(
    shell: Shell, engine: EngineName, kind: Literal["database", "accounts"], database: str, path: str
) -> DumpRecord:
    lines = shell.run(script(PUBLISH, path), deadline_s=600, name="publishing the dump").stdout.splitlines()
    sha256 = lines[1].lstrip("\\")[:64]
    return DumpRecord(engine=engine, kind=kind, database=database, path=path, size_bytes=int(lines[0]), sha256=sha256)


def _reason(error: Exception) -> str:
    text = str(error.args[2]) if isinstance(error, CommandFailed) else str(error)
    return " ".join(text.split())[-300:] or "no reason given"
