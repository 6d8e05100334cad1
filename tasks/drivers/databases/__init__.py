"""Database dumps on the client: one small contract, one module per engine.

A dump is written beside its old self, proves itself by its own means, and only then takes the old one's place; its
sha256 is made on the client. Nothing is piped, credentials are never on a command line: the engines are spoken to by
their superuser through the local socket, or as a file on the client says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from tasks.drivers.databases.engine import Engine
from tasks.drivers.databases.mariadb import MARIADB
from tasks.drivers.databases.openldap import OPENLDAP
from tasks.drivers.databases.postgresql import POSTGRESQL
from tasks.drivers.databases.redis import REDIS
from tasks.drivers.databases.sqlite import SQLITE
from tasks.drivers.host_shell import SystemShell
from tasks.errors import CommandFailed, CommandTimedOut, DumpFailed, RestoreFailed
from tasks.model.databases import DumpedBy, EngineName, Server
from tasks.model.manifest import DumpRecord
from tasks.model.names import slug
from tasks.model.rsync_pattern import literal

QUERY_DEADLINE_S = 60
DUMP_TO_SIZE = 1.1
ENGINES: dict[EngineName, Engine] = {
    "postgresql": POSTGRESQL,
    "mariadb": MARIADB,
    "sqlite": SQLITE,
    "redis": REDIS,
    "openldap": OPENLDAP,
}

# $login comes first among the arguments; then what the script calls $1, $2 …
_LOGIN = """
login=$1
shift
nicely() {
    if command -v ionice > /dev/null; then ionice -c 3 nice -n 10 "$@"; else nice -n 10 "$@"; fi
}
"""
# One script and one round trip a dump. $1: the database, $2: the dump's file. The old dump stays until the new one is
# whole; what is printed last is the new one's size and sha256.
_PROLOGUE = """
umask 077
[ -d "${2%/*}" ] || mkdir -p -- "${2%/*}"
[ ! -e "$2.partial" ] || rm -f -- "$2.partial"
room() {
    df -B1 --output=avail,iavail -- "${2%/*}" | {
        read -r _; read -r bytes inodes
        [ "$bytes" -gt "$1" ] && { [ "$inodes" = - ] || [ "$inodes" -gt 100 ]; } ||
            { echo "${2%/*} has $bytes bytes and $inodes inodes free, the dump may need $1 bytes" >&2; exit 75; }
    }
}
"""
_EPILOGUE = """
test -s "$2.partial"
sync -- "$2.partial"
mv -f -- "$2.partial" "$2"
stat -c %s -- "$2"
sha256sum -- "$2"
"""
# Not every client has ps(1); processes that end meanwhile are none.
_RUNNING = "cat /proc/[0-9]*/comm 2> /dev/null || true"


@dataclass(frozen=True)
class DumpPlan:
    """What is dumped to which file of the client, and what errors call it."""

    server: Server
    kind: Literal["database", "accounts"]
    database: str
    path: str
    called: str


def script(server: Server, text: str, *arguments: str) -> list[str]:
    """The argv that runs a constant script with arguments that never become code."""
    return ["sh", "-euc", _LOGIN + text, "gbs", server.login, *arguments]


def list_databases(shell: SystemShell, server: Server, names: Sequence[str] = ()) -> dict[str, int]:
    """The bytes that each database of a running server holds, without templates; DumpFailed when it does not answer.

    Of an engine without a server, `names` are its databases.
    """
    called = f"{server.engine} on {shell.name}"
    try:
        command = script(server, ENGINES[server.engine].databases, *names)
        output = shell.run(command, deadline_s=QUERY_DEADLINE_S, name=f"listing {server.engine}")
        rows = [line.split() for line in output.stdout.splitlines()]
        found = {bytes.fromhex(name).decode(): int(size) for name, size in rows}
    except (CommandFailed, ValueError) as exc:
        raise DumpFailed(called, reason_of(exc)) from exc
    return dict(sorted(found.items()))


def data_patterns(engine: DumpedBy, names: Sequence[str]) -> tuple[str, ...]:
    """rsync patterns of what a dump covers; of sqlite, what belongs to a moment that has gone."""
    if engine == "command":
        return ()
    journals = [literal(name, end) for name in names for end in ("-wal", "-shm", "-journal")]
    return (*ENGINES[engine].data_folders, *(journals if engine == "sqlite" else ()))


def running_engines(shell: SystemShell) -> set[EngineName]:
    """The engines of which the client runs a server."""
    running = set(shell.run(["sh", "-c", _RUNNING], deadline_s=QUERY_DEADLINE_S).stdout.split())
    return {name for name, engine in ENGINES.items() if running.intersection(engine.processes)}


def dump_database(
    shell: SystemShell, server: Server, database: str, size_bytes: int, folder: str, deadline_s: float
) -> DumpRecord:
    """Dump one database into `folder` of the client; the old dump stays until this one is good.

    Raises DumpFailed when there is no room for the `size_bytes` that the engine says it holds, when the dump fails, or
    when it does not prove itself whole.
    """
    spoken = ENGINES[server.engine]
    path = str(PurePosixPath(folder, server.engine, f"{slug(database)}{spoken.suffix}"))
    text = f"""{_PROLOGUE}
dump() {{ {spoken.dump}
}}
check() {{ {spoken.check}
}}
room {int(size_bytes * DUMP_TO_SIZE)} "$2"
dump "$1" "$2.partial"
check "$1" "$2.partial"
{_EPILOGUE}"""
    called = f"{server.engine} database {database!r} on {shell.name}"
    return _dump(shell, text, DumpPlan(server, "database", database, path, called), deadline_s)


def dump_accounts(shell: SystemShell, server: Server, folder: str, deadline_s: float) -> DumpRecord | None:
    """Dump the server's roles, users or configuration, with the same guarantees; None for an engine without."""
    accounts = ENGINES[server.engine].accounts
    if accounts is None:
        return None
    path = str(PurePosixPath(folder, server.engine, "accounts", "accounts.sql"))
    text = f"""{_PROLOGUE}
dump() {{ {accounts.dump}
}}
check() {{ {accounts.check}
}}
room 1048576 "$2"
dump "$2.partial"
check "$2.partial"
{_EPILOGUE}"""
    plan = DumpPlan(server, "accounts", "", path, f"{server.engine} accounts on {shell.name}")
    return _dump(shell, text, plan, deadline_s)


def restore(shell: SystemShell, server: Server, dumps: Sequence[DumpRecord], deadline_s: float) -> None:
    """Bring back accounts, then databases, from the server's dumps that lie on the system behind `shell`.

    Each dump's sha256 is compared first. Raises RestoreFailed naming the dump that does not match or does not load.
    """
    spoken = ENGINES[server.engine]
    for dump in sorted(dumps, key=lambda dump: dump.kind):
        called = f"{dump.engine} {dump.kind} {dump.database!r} on {shell.name}"
        try:
            require_as_made(shell, dump, called, deadline_s)
            if dump.kind == "database":
                command = script(server, spoken.restore, dump.database, dump.path)
                shell.run_to_end(command, deadline_s=deadline_s, name=f"restore of {dump.database}")
            elif spoken.accounts is not None:
                command = script(server, spoken.accounts.restore, dump.path)
                shell.run_to_end(command, deadline_s=deadline_s, name="restore of accounts")
        except CommandFailed as exc:
            raise RestoreFailed(called, reason_of(exc)) from exc


def is_ready(shell: SystemShell, server: Server) -> bool:
    """Whether the server accepts connections now."""
    command = script(server, ENGINES[server.engine].ready)
    return shell.run(command, deadline_s=QUERY_DEADLINE_S, check=False).status == 0


def require_as_made(shell: SystemShell, dump: DumpRecord, called: str, deadline_s: float) -> None:
    """Raise RestoreFailed unless the file on the client has the sha256 that it was made with."""
    found = shell.run(["sha256sum", "--", dump.path], deadline_s=deadline_s).stdout.lstrip("\\")[:64]
    if found != dump.sha256:
        raise RestoreFailed(called, f"the dump {dump.path} is not the one that was made: sha256 differs")


def reason_of(error: Exception) -> str:
    """What a script said, in one line."""
    if isinstance(error, CommandTimedOut):
        return f"it was stopped after {error.args[1]:.0f} s"
    text = str(error.args[2]) if isinstance(error, CommandFailed) else str(error)
    return " ".join(text.split())[-300:] or "no reason given"


def _dump(shell: SystemShell, text: str, plan: DumpPlan, deadline_s: float) -> DumpRecord:
    try:
        command = script(plan.server, text, plan.database, plan.path)
        size_bytes, line = shell.run_to_end(command, deadline_s=deadline_s, name="dump").stdout.splitlines()[-2:]
        return DumpRecord(
            engine=plan.server.engine,
            kind=plan.kind,
            database=plan.database,
            path=plan.path,
            size_bytes=int(size_bytes),
            sha256=line.lstrip("\\")[:64],
        )
    except (CommandFailed, ValueError) as exc:
        raise DumpFailed(plan.called, reason_of(exc)) from exc
