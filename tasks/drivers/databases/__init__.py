"""Database dumps on the client: one small contract, one module per engine.

A dump is written beside its old self, proves itself by its own means, and only then takes the old one's place; its
sha256 is made on the client. Nothing is piped, credentials are never on a command line: the engines are spoken to by
their superuser through the local socket.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from tasks.drivers.databases.engine import Engine
from tasks.drivers.databases.mariadb import MARIADB
from tasks.drivers.databases.postgresql import POSTGRESQL
from tasks.drivers.ssh import Shell
from tasks.errors import CommandFailed, DumpFailed
from tasks.model.manifest import DumpRecord
from tasks.model.names import slug

EngineName = Literal["postgresql", "mariadb"]
QUERY_DEADLINE_S = 60
DUMP_TO_SIZE = 1.1

# One script and one round trip a dump. $1: the database, $2: the dump's file. The old dump stays until the new one is
# whole; what is printed last is the new one's size and sha256.
PROLOGUE = """
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
EPILOGUE = """
test -s "$2.partial"
sync -- "$2.partial"
mv -f -- "$2.partial" "$2"
stat -c %s -- "$2"
sha256sum -- "$2"
"""


ENGINES: dict[EngineName, Engine] = {"postgresql": POSTGRESQL, "mariadb": MARIADB}


@dataclass(frozen=True)
class DumpPlan:
    """What is dumped to which file of the client, and what errors call it."""

    engine: EngineName
    kind: Literal["database", "accounts"]
    database: str
    path: str
    called: str


def script(text: str, *arguments: str) -> list[str]:
    """The argv that runs a constant script with arguments that never become code."""
    return ["sh", "-euc", text, "gbs", *arguments]


def list_databases(shell: Shell, engine: EngineName) -> dict[str, int]:
    """The bytes that each database of a running server holds, without templates; DumpFailed when it does not answer."""
    try:
        output = shell.run(script(ENGINES[engine].databases), deadline_s=QUERY_DEADLINE_S, name=f"listing {engine}")
        rows = [line.split() for line in output.stdout.splitlines()]
        found = {bytes.fromhex(name).decode(): int(size) for name, size in rows}
    except (CommandFailed, ValueError) as exc:
        raise DumpFailed(f"{engine} on {shell.target.name}", _reason(exc)) from exc
    return dict(sorted(found.items()))


def dump_database(
    shell: Shell, engine: EngineName, database: str, size_bytes: int, folder: str, deadline_s: float
) -> DumpRecord:
    """Dump one database into `folder` of the client; the old dump stays until this one is good.

    Raises DumpFailed when there is no room for the `size_bytes` that the engine says it holds, when the dump fails, or
    when it does not prove itself whole.
    """
    spoken = ENGINES[engine]
    path = str(PurePosixPath(folder, engine, f"{slug(database)}{spoken.suffix}"))
    text = f"""{PROLOGUE}
dump() {{ {spoken.dump}
}}
check() {{ {spoken.check}
}}
room {int(size_bytes * DUMP_TO_SIZE)} "$2"
dump "$1" "$2.partial"
check "$2.partial"
{EPILOGUE}"""
    called = f"{engine} database {database!r} on {shell.target.name}"
    return _dump(shell, text, DumpPlan(engine, "database", database, path, called), deadline_s)


def dump_accounts(shell: Shell, engine: EngineName, folder: str, deadline_s: float) -> DumpRecord:
    """Dump the server's roles or users; the same guarantees as `dump_database`."""
    spoken = ENGINES[engine]
    path = str(PurePosixPath(folder, engine, "accounts", "accounts.sql"))
    text = f"""{PROLOGUE}
dump() {{ {spoken.dump_accounts}
}}
check() {{ {spoken.check_accounts}
}}
room 1048576 "$2"
dump "$2.partial"
check "$2.partial"
{EPILOGUE}"""
    plan = DumpPlan(engine, "accounts", "", path, f"{engine} accounts on {shell.target.name}")
    return _dump(shell, text, plan, deadline_s)


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


def _dump(shell: Shell, text: str, plan: DumpPlan, deadline_s: float) -> DumpRecord:
    try:
        command = script(text, plan.database, plan.path)
        size_bytes, line = shell.run(command, deadline_s=deadline_s, name="dump").stdout.splitlines()[-2:]
        return DumpRecord(
            engine=plan.engine,
            kind=plan.kind,
            database=plan.database,
            path=plan.path,
            size_bytes=int(size_bytes),
            sha256=line.lstrip("\\")[:64],
        )
    except (CommandFailed, ValueError) as exc:
        raise DumpFailed(plan.called, _reason(exc)) from exc


def _reason(error: Exception) -> str:
    text = str(error.args[2]) if isinstance(error, CommandFailed) else str(error)
    return " ".join(text.split())[-300:] or "no reason given"
