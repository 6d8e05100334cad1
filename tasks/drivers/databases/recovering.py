"""A dump brought back beside what is there: under another name, or with the old database kept.

Only engines whose servers hold many databases can do that: the others are restored as a whole, by hand
(docs/how-to.md), or with their VM.
"""

from contextlib import suppress
from dataclasses import dataclass

from tasks.drivers import databases
from tasks.drivers.databases import reason_of, script
from tasks.drivers.databases.mariadb import CLIENT
from tasks.drivers.databases.postgresql import ALONE, AS
from tasks.drivers.ssh import Shell
from tasks.errors import CommandFailed, ConfigError, GbsError, RestoreFailed
from tasks.model.databases import DumpedBy, EngineName, Server
from tasks.model.manifest import DumpRecord


@dataclass(frozen=True)
class Recovering:
    """Scripts, run as those of `Engine` are."""

    there: str
    """Prints a word if database $1 is there, the engine's own and those that take no connections too."""
    create: str
    """Makes database $1, empty, as the one in the dump $2 was made; fails when one of that name is there."""
    load: str
    """Fills database $1, which `create` made, from the dump $2; like $3, where that is a file."""
    drop: str
    """Removes database $1, if it is there."""
    rename: str | None
    """Renames database $1 to $2, ending what is connected to it; None where the engine cannot."""
    tables: str
    """Prints how many tables database $1 has."""


# What a database was made with, and whose it is, stands in the dump under its old name.
_SAID = (
    ALONE
    + r"""
said() { as_postgres pg_restore --create --schema-only --file=- < "$1" | sed -n "$2"; }
"""
)
_POSTGRESQL = Recovering(
    there=f'{ALONE} if is_there "$1"; then echo there; fi',
    create=_SAID
    + r"""
like=$(said "$2" '/^CREATE DATABASE /{s/^.* WITH TEMPLATE = template0//;s/;$//;p;q;}')
sql "$1" "CREATE DATABASE :\"db\" WITH TEMPLATE = template0$like;"
""",
    # A connection string is the one way to name any database to pg_restore.
    load=_SAID
    + r"""
owner=$(said "$2" '/^ALTER DATABASE .* OWNER TO /{s/^.* OWNER TO //;s/;$//;p;q;}')
[ -z "$owner" ] || sql "$1" "ALTER DATABASE :\"db\" OWNER TO $owner;"
quoted=$(printf '%s' "$1" | sed "s/[\\\\']/\\\\&/g")
PGDATABASE=postgres as_postgres pg_restore --exit-on-error --dbname="dbname='$quoted'" < "$2"
""",
    drop=f'{ALONE} dropped "$1"',
    rename=ALONE
    + r"""
now=$1
trap 'open_to_all "$now"' EXIT
alone "$1"
sql "$1" 'ALTER DATABASE :"db" RENAME TO :"new";' "$2"
now=$2
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
    # A server may take crm and CRM for one (lower_case_table_names).
    there=f"""
hex=$(printf '%s' "$1" | od -An -v -tx1 | tr -d ' \\n')
{_SPEAK} --batch --skip-column-names -e "
    SELECT 'there' FROM information_schema.schemata WHERE BINARY schema_name = x'$hex' OR
    (@@lower_case_table_names <> 0 AND BINARY LOWER(schema_name) = BINARY LOWER(CONVERT(x'$hex' USING utf8)))"
""",  # noqa: S608
    create=_QUOTED
    + r"""
like=$(sed -n '/^CREATE DATABASE /{s/^.*\(\/\*!40100 .*\*\/\);$/\1/p;q;}' -- "$2")
printf 'CREATE DATABASE `%s` %s;\n' "$new" "$like" | """
    + _SPEAK,
    # The statements that name the old database stand before the first table; what is in it does not name it again,
    # but where a view, routine or event does so on purpose.
    load=_QUOTED
    + r"""
{
    printf 'USE `%s`;\n' "$new"
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
    there='if [ -e "$1" ] || [ -L "$1" ]; then echo there; fi',
    # A journal that was left there would be taken for the new database's.
    create=r"""
umask 077
[ -d "${1%/*}" ] || mkdir -p -- "${1%/*}"
for end in -wal -shm -journal; do [ ! -e "$1$end" ] || { echo "$1$end exists" >&2; exit 1; }; done
set -C
: > "$1"
""",
    load=r"""
(cd -- "${2%/*}" && sqlite3 -batch -bail "$1" ".restore main ${2##*/}")
[ "$(sqlite3 -batch -bail "$1" "PRAGMA integrity_check")" = ok ]
[ ! -f "$3" ] || { chown --reference="$3" -- "$1"; chmod --reference="$3" -- "$1"; }
""",
    drop='rm -f -- "$1" "$1-wal" "$1-shm" "$1-journal"',
    # What has it open goes on with it under its new name. Its file first: where that is, it is called back from.
    rename=r"""
for end in '' -wal -shm -journal; do [ ! -e "$1$end" ] || mv -T -- "$1$end" "$2$end"; done
""",
    tables="""sqlite3 -batch -bail "$1" "SELECT count(*) FROM sqlite_master WHERE type = 'table'" """,
)
RECOVERING: dict[DumpedBy, Recovering] = {"postgresql": _POSTGRESQL, "mariadb": _MARIADB, "sqlite": _SQLITE}
LONGEST_NAME = {"postgresql": 63, "mariadb": 64}
"""Bytes of a database's name; longer ones are cut by PostgreSQL without an error."""
_OWN = ("postgres", "template0", "template1")
"""PostgreSQL is spoken to through the first of them, and makes databases of the others."""


def require_name(engine: DumpedBy, name: str) -> None:
    """ConfigError for a name that a database cannot be brought back under."""
    if engine == "sqlite" and not name.startswith("/"):
        raise ConfigError(f"{name!r} is no file", "--as", "name a database of sqlite by its absolute path")
    if engine == "postgresql" and name in _OWN:
        raise ConfigError(f"{name} is a database of PostgreSQL's own", "--as", "bring it back under another name")
    if engine == "postgresql" and len(name.encode()) > LONGEST_NAME[engine]:
        raise ConfigError(f"{name!r} is too long", "--as", f"PostgreSQL takes {LONGEST_NAME[engine]} bytes")


def aside_name(engine: EngineName, name: str, stamp: str) -> str:
    """What an old database is called while it is kept."""
    kept = f"{name}-replaced-{stamp}"
    longest = LONGEST_NAME.get(engine)
    if longest is None or len(kept.encode()) <= longest:
        return kept
    front = name.encode()[: longest - len(f"-replaced-{stamp}")].decode("utf-8", "ignore")
    return f"{front}-replaced-{stamp}"


def is_there(shell: Shell, server: Server, name: str) -> bool:
    """Whether a database of that name is there, whatever it is; RestoreFailed when its server does not answer."""
    return bool(_run(shell, server, RECOVERING[server.engine].there, databases.QUERY_DEADLINE_S, name).strip())


def load(
    shell: Shell, server: Server, dump: DumpRecord, name: str, deadline_s: float, *, like: str | None = None
) -> None:
    """Make database `name` from the dump at `dump.path` of the system; one that is there is never touched.

    Under its own name it is all that it was; under another one settings of the database itself are the server's. A file
    of sqlite gets owner and mode of `like`, by default of the one that was dumped. After a failure nothing of it is
    there, if the system still answers. Raises RestoreFailed, also when there is one of that name.
    """
    spoken = RECOVERING[server.engine]
    called = f"{dump.engine} database {dump.database!r} on {shell.target.name}"
    databases.require_as_made(shell, dump, called, deadline_s)
    _run(shell, server, spoken.create, deadline_s, name, dump.path)
    # From here on it is ours, and nothing else is dropped. The engine's own restore replaces what was made.
    own = name == dump.database and server.engine != "sqlite"
    words = databases.ENGINES[server.engine].restore if own else spoken.load
    try:
        _run(shell, server, words, deadline_s, name, dump.path, like or dump.database)
    except BaseException:
        with suppress(GbsError):
            drop(shell, server, name, deadline_s)
        raise


def drop(shell: Shell, server: Server, name: str, deadline_s: float) -> None:
    """Remove a database, if it is there."""
    _run(shell, server, RECOVERING[server.engine].drop, deadline_s, name)


def can_rename(engine: EngineName) -> bool:
    """Whether the engine can give a database another name."""
    return RECOVERING[engine].rename is not None


def rename(shell: Shell, server: Server, name: str, new: str, deadline_s: float) -> None:
    """Give a database another name, ending what is connected to it; of an engine that can."""
    _run(shell, server, RECOVERING[server.engine].rename or "exit 1", deadline_s, name, new)


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
