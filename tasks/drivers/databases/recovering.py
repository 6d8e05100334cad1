"""A dump brought back beside what is there: under another name, or with the old database kept.

Only engines whose servers hold many databases can do that: the others are restored as a whole, by hand
(docs/how-to.md), or with their VM.
"""

from contextlib import suppress
from dataclasses import dataclass

from tasks.drivers import databases
from tasks.drivers.databases import reason_of, script
from tasks.drivers.databases.mariadb import CLIENT
from tasks.drivers.databases.postgresql import AS
from tasks.drivers.ssh import Shell
from tasks.errors import CommandFailed, GbsError, RestoreFailed
from tasks.model.databases import DumpedBy, EngineName, Server
from tasks.model.manifest import DumpRecord


@dataclass(frozen=True)
class Recovering:
    """Scripts, run as those of `Engine` are."""

    load: str
    """Makes database $1, which is not there, from the dump $2; like $3, where that is a file."""
    drop: str
    """Removes database $1, if it is there."""
    rename: str | None
    """Renames database $1 to $2, ending what is connected to it; None where the engine cannot."""
    tables: str
    """Prints how many tables database $1 has."""


_POSTGRESQL = Recovering(
    # What it was made with, and whose it is, stands in the dump under its old name. A connection string is the one way
    # to name any database to pg_restore.
    load=AS
    + r"""
export PGDATABASE=postgres
said() { as_postgres pg_restore --create --schema-only --file=- < "$1" | sed -n "$2"; }
like=$(said "$2" '/^CREATE DATABASE /{s/^.* WITH TEMPLATE = template0//;s/;$//;p;q;}')
owner=$(said "$2" '/^ALTER DATABASE .* OWNER TO /{s/^.* OWNER TO //;s/;$//;p;q;}')
run() { as_postgres psql -Xq -v ON_ERROR_STOP=1 -v new="$1"; }
printf 'CREATE DATABASE :"new" WITH TEMPLATE = template0%s;\n' "$like" | run "$1"
[ -z "$owner" ] || printf 'ALTER DATABASE :"new" OWNER TO %s;\n' "$owner" | run "$1"
quoted=$(printf '%s' "$1" | sed "s/[\\\\']/\\\\&/g")
as_postgres pg_restore --exit-on-error --dbname="dbname='$quoted'" < "$2"
""",
    drop=f'{AS} PGDATABASE=postgres as_postgres dropdb --if-exists --force --maintenance-db=postgres -- "$1"',
    rename=AS  # noqa: S608
    + r"""
export PGDATABASE=postgres
run() { printf '%s\n' "$3" | as_postgres psql -Xq -v ON_ERROR_STOP=1 -v old="$1" -v new="$2" > /dev/null; }
now=old
trap 'run "$1" "$2" "ALTER DATABASE :\"$now\" ALLOW_CONNECTIONS true;"' EXIT
run "$1" "$2" 'ALTER DATABASE :"old" ALLOW_CONNECTIONS false;'
run "$1" "$2" "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = :'old';"
run "$1" "$2" 'ALTER DATABASE :"old" RENAME TO :"new";'
now=new
""",
    tables=AS  # noqa: S608
    + r"""
PGDATABASE="$1" as_postgres psql -XAtqc "SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace
    NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_' OR nspname = 'information_schema')"
""",
)
_SPEAK = f"{CLIENT} --default-character-set=utf8mb4"
"""Names are UTF-8, whatever the locale of a login is."""
_QUOTED = r"""new=$(printf '%s' "$1" | sed 's/`/``/g')
"""
_MARIADB = Recovering(
    # The statements that name the old database stand before the first table; what is in it does not name it again,
    # but where a view, routine or event does so on purpose.
    load=_QUOTED
    + r"""
like=$(sed -n '/^CREATE DATABASE /{s/^.*\(\/\*!40100 .*\*\/\);$/\1/p;q;}' -- "$2")
{
    printf 'CREATE DATABASE `%s` %s;\nUSE `%s`;\n' "$new" "$like" "$new"
    sed '1,/^USE /{/^CREATE DATABASE /d;/^USE /d;/DROP DATABASE IF EXISTS/d;}' -- "$2"
} | """
    + _SPEAK,
    drop=_QUOTED + r"""printf 'DROP DATABASE IF EXISTS `%s`;\n' "$new" | """ + _SPEAK,
    rename=None,
    tables=f"""{_SPEAK} --batch --skip-column-names -D "$1" -e "
    SELECT COUNT(*) FROM information_schema.tables
    WHERE table_type = 'BASE TABLE' AND table_schema = BINARY DATABASE()"
""",  # noqa: S608
)
_SQLITE = Recovering(
    load=r"""
umask 077
[ -d "${1%/*}" ] || mkdir -p -- "${1%/*}"
: > "$1"
(cd -- "${2%/*}" && sqlite3 -batch -bail "$1" ".restore main ${2##*/}")
[ "$(sqlite3 -batch -bail "$1" "PRAGMA integrity_check")" = ok ]
[ ! -f "$3" ] || { chown --reference="$3" -- "$1"; chmod --reference="$3" -- "$1"; }
""",
    drop='rm -f -- "$1" "$1-wal" "$1-shm" "$1-journal"',
    # What has it open goes on with it under its new name.
    rename=r"""
for end in -wal -shm -journal ''; do [ ! -e "$1$end" ] || mv -T -- "$1$end" "$2$end"; done
""",
    tables="""sqlite3 -batch -bail "$1" "SELECT count(*) FROM sqlite_master WHERE type = 'table'" """,
)
RECOVERING: dict[DumpedBy, Recovering] = {"postgresql": _POSTGRESQL, "mariadb": _MARIADB, "sqlite": _SQLITE}
LONGEST_NAME = {"postgresql": 63, "mariadb": 64}
"""Bytes of a database's name; longer ones are cut by PostgreSQL without an error."""


def aside_name(engine: EngineName, name: str, stamp: str) -> str:
    """What an old database is called while it is kept."""
    kept = f"{name}-replaced-{stamp}"
    longest = LONGEST_NAME.get(engine)
    if longest is None or len(kept.encode()) <= longest:
        return kept
    front = name.encode()[: longest - len(f"-replaced-{stamp}")].decode("utf-8", "ignore")
    return f"{front}-replaced-{stamp}"


def load(
    shell: Shell, server: Server, dump: DumpRecord, name: str, deadline_s: float, *, like: str | None = None
) -> None:
    """Make database `name`, which is not there, from the dump at `dump.path` of the system.

    Under its own name it is all that it was; under another one settings of the database itself are the server's. A file
    of sqlite gets owner and mode of `like`, by default of the one that was dumped. After a failure nothing of it is
    there, if the system still answers. Raises RestoreFailed.
    """
    try:
        if name == dump.database and server.engine != "sqlite":
            databases.restore(shell, server, [dump], deadline_s)
        else:
            called = f"{dump.engine} database {dump.database!r} on {shell.target.name}"
            databases.require_as_made(shell, dump, called, deadline_s)
            _run(shell, server, RECOVERING[server.engine].load, deadline_s, name, dump.path, like or dump.database)
    except BaseException:
        with suppress(GbsError):
            drop(shell, server, name, deadline_s)
        raise


def drop(shell: Shell, server: Server, name: str, deadline_s: float) -> None:
    """Remove a database that was not there before."""
    _run(shell, server, RECOVERING[server.engine].drop, deadline_s, name)


def rename(shell: Shell, server: Server, name: str, new: str, deadline_s: float) -> bool:
    """Give a database another name, ending what is connected to it; False where the engine cannot."""
    words = RECOVERING[server.engine].rename
    if words is not None:
        _run(shell, server, words, deadline_s, name, new)
    return words is not None


def tables(shell: Shell, server: Server, name: str, deadline_s: float) -> int:
    """How many tables a database has."""
    return int(_run(shell, server, RECOVERING[server.engine].tables, deadline_s, name).split()[-1])


def _run(shell: Shell, server: Server, words: str, deadline_s: float, name: str, *more: str) -> str:
    called = f"{server.engine} database {name!r} on {shell.target.name}"
    try:
        command = script(server, words, name, *more)
        return shell.run_to_end(command, deadline_s=deadline_s, name=f"recovery of {name}").stdout
    except CommandFailed as exc:
        raise RestoreFailed(called, reason_of(exc)) from exc
