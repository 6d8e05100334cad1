"""PostgreSQL: one custom-format dump per database, roles apart (pg_dump(1), pg_dumpall(1), pg_restore(1)).

Database names go through PGDATABASE: as an argument, a name with `=` would be read as a connection string.
"""

from tasks.drivers.databases.engine import Engine

POSTGRESQL = Engine(
    data_folders=("/var/lib/postgresql/*/*/*", "/var/lib/pgsql/*/data/*", "/var/lib/pgsql/data/*"),
    suffix=".dump",
    ready='runuser -u postgres -- psql -XAtq -d postgres -c "SELECT 1" > /dev/null',
    databases="""
runuser -u postgres -- psql -XAtq -d postgres -c \
    "SELECT encode(convert_to(datname, 'UTF8'), 'hex') || ' ' || pg_database_size(oid)
    FROM pg_database WHERE datallowconn AND datname <> 'template1'"
""",
    dump='umask 077; PGDATABASE="$1" runuser -u postgres -- nice -n 10 pg_dump --format=custom > "$2"',
    check='nice -n 10 pg_restore --file=/dev/null -- "$1"',
    restore="""
if [ "$1" = postgres ]; then
    runuser -u postgres -- pg_restore --clean --if-exists --exit-on-error --dbname=postgres < "$2"
else
    runuser -u postgres -- dropdb --if-exists --force --maintenance-db=postgres -- "$1"
    runuser -u postgres -- pg_restore --create --exit-on-error --dbname=postgres < "$2"
fi
""",
    dump_accounts='umask 077; runuser -u postgres -- pg_dumpall --globals-only > "$1"',
    check_accounts='tail -n 3 -- "$1" | grep -q "^-- PostgreSQL database cluster dump complete"',
    # A role that exists makes its CREATE ROLE fail; the ALTER ROLE that follows each sets all that is its own.
    restore_accounts='runuser -u postgres -- psql -Xq -d postgres < "$1" > /dev/null 2>&1',
)
