"""PostgreSQL: one custom-format dump per database, roles apart (pg_dump(1), pg_dumpall(1), pg_restore(1)).

Database names go through PGDATABASE: as an argument, a name with `=` would be read as a connection string. A login file
is a connection service file (libpq, "The Connection Service File") with a section `[gbs]`.
"""

from tasks.drivers.databases.engine import Accounts, Engine

AS = """
as_postgres() {
    if [ -n "$login" ]; then PGSERVICEFILE=$login PGSERVICE=gbs "$@"; else runuser -u postgres -- "$@"; fi
}
"""
# dropdb --force came with PostgreSQL 13, a termination that waits with 14: done here for all that may be met (9.5 on).
ALONE = (
    AS  # noqa: S608
    + r"""
sql() { # DATABASE STATEMENT [OTHER]: said to another database than it
    printf '%s\n' "$2" | PGDATABASE=postgres as_postgres psql -XAtq -v ON_ERROR_STOP=1 -v db="$1" -v new="${3:-}"
}
open_to_all() { sql "$1" 'ALTER DATABASE :"db" ALLOW_CONNECTIONS true;'; }
alone() { # DATABASE: nobody is connected to it, nor can be until `open_to_all`
    sql "$1" 'ALTER DATABASE :"db" ALLOW_CONNECTIONS false;' || return
    ended="SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = :'db';"
    tries=25
    while left=$(sql "$1" "$ended") && [ "$left" != 0 ]; do
        [ $((tries -= 1)) -gt 0 ] || { echo "$left connections to it do not end" >&2; return 1; }
        sleep 0.2
    done
    [ "$left" = 0 ]
}
is_there() { # DATABASE; a server that does not answer ends the script, also where this is a condition
    found=$(sql "$1" "SELECT 1 FROM pg_database WHERE datname = :'db';") || exit
    [ -n "$found" ]
}
dropped() { # DATABASE, if it is there
    is_there "$1" || return 0
    alone "$1" && sql "$1" 'DROP DATABASE :"db";' || { open_to_all "$1"; return 1; }
}
"""
)

POSTGRESQL = Engine(
    processes=("postgres", "postmaster"),
    data_folders=("/var/lib/postgresql/*/*/*", "/var/lib/pgsql/*/data/*", "/var/lib/pgsql/data/*"),
    suffix=".dump",
    ready=f'{AS} PGDATABASE=postgres as_postgres psql -XAtq -c "SELECT 1" > /dev/null',
    databases=f"""{AS}
PGDATABASE=postgres as_postgres psql -XAtq -c \\
    "SELECT encode(convert_to(datname, 'UTF8'), 'hex') || ' ' || pg_database_size(oid)
    FROM pg_database WHERE datallowconn AND datname <> 'template1'"
""",  # noqa: S608
    dump=f'{AS} PGDATABASE="$1" as_postgres nice -n 10 pg_dump --format=custom > "$2"',
    check='nicely pg_restore --file=/dev/null -- "$2"',
    restore=f"""{ALONE}
export PGDATABASE=postgres
if [ "$1" = postgres ]; then
    as_postgres pg_restore --clean --if-exists --exit-on-error --dbname=postgres < "$2"
else
    dropped "$1"
    as_postgres pg_restore --create --exit-on-error --dbname=postgres < "$2"
fi
""",
    accounts=Accounts(
        dump=f'{AS} PGDATABASE=postgres as_postgres pg_dumpall --globals-only > "$1"',
        check='tail -n 3 -- "$1" | grep -q "^-- PostgreSQL database cluster dump complete"',
        # A role that exists makes its CREATE ROLE fail; the ALTER ROLE that follows each sets all that is its own.
        restore=f'{AS} PGDATABASE=postgres as_postgres psql -Xq < "$1" > /dev/null 2>&1',
    ),
)
