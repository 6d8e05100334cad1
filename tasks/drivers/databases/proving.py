"""Dumps restored here, on the GBS server, into throw-away servers that only root and theirs can reach."""

import tempfile
from pathlib import Path

from tasks.drivers import process
from tasks.drivers.databases import reason_of
from tasks.errors import CommandFailed, DumpFailed
from tasks.model.manifest import DumpRecord

# $1: the dump; $2: an empty folder with room; $3: a folder in /tmp that holds the server's socket, on which alone it
# listens. The server's user may not reach $2 by its name: in a mount namespace that ends with the script, it is $data
# too. What is printed last is the number of tables, or keys.
_PROLOGUE = """
data=$3/data
mkdir "$data"
mount --bind "$2" "$data"
"""
_POSTGRESQL = """
for found in /usr/lib/postgresql/*/bin; do PATH=$found:$PATH; done
command -v initdb > /dev/null || { echo "there is no PostgreSQL server on the GBS server" >&2; exit 1; }
as() { runuser -u postgres -- env PGHOST="$socket" PGUSER=postgres "$@"; }
socket=$3
chown postgres "$data" "$3"
as initdb -D "$data/data" -U postgres -A trust -E UTF8 --locale=C --no-sync > /dev/null
as postgres -D "$data/data" -c listen_addresses= -c unix_socket_directories="$3" -c fsync=off -c full_page_writes=off \
    > "$3/log" 2>&1 &
trap 'as pg_ctl -D "$data/data" stop -m immediate -s' EXIT
until as psql -XAtqc "SELECT 1" postgres > /dev/null 2>&1; do
    kill -0 $! || { tail -n 3 "$3/log" >&2; exit 1; }; sleep 0.1
done
as createdb -T template0 proof
as pg_restore --no-owner --no-privileges --exit-on-error -d proof < "$1"
as psql -XAtqc "SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace NOT IN
    (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_' OR nspname = 'information_schema')" proof
"""
_MARIADB = """
command -v mariadb-install-db > /dev/null || { echo "there is no MariaDB server on the GBS server" >&2; exit 1; }
chown mysql "$data" "$3"
mariadb-install-db --no-defaults --user=mysql --datadir="$data/data" --skip-test-db \
    --auth-root-authentication-method=normal > "$3/log" 2>&1 || { tail -n 3 "$3/log" >&2; exit 1; }
PATH=$PATH:/usr/sbin mariadbd --no-defaults --user=mysql --datadir="$data/data" --skip-networking --socket="$3/s" \
    --pid-file="$3/pid" --innodb-flush-log-at-trx-commit=0 > "$3/log" 2>&1 &
trap "kill $!; wait $!" EXIT
client() { mariadb --no-defaults --socket="$socket" --user=root "$@"; }
socket=$3/s
until client -e "SELECT 1" > /dev/null 2>&1; do kill -0 $! || { tail -n 3 "$3/log" >&2; exit 1; }; sleep 0.1; done
client < "$1"
client -N -e "SELECT count(*) FROM information_schema.tables WHERE table_type = 'BASE TABLE'
    AND table_schema NOT IN ('mysql', 'sys', 'performance_schema', 'information_schema')"
"""
_SQLITE = """
cp -- "$1" "$data/db"
[ "$(sqlite3 -batch -bail "$data/db" "PRAGMA integrity_check")" = ok ]
sqlite3 -batch -bail "$data/db" "SELECT count(*) FROM sqlite_master WHERE type = 'table'"
"""
_REDIS = """
cp -- "$1" "$data/dump.rdb"
printf '%s\\n' 'port 0' "unixsocket $3/s" "dir $data" 'save ""' | redis-server - > "$3/log" 2>&1 &
trap "kill $!; wait $!" EXIT
until [ "$(redis-cli -s "$3/s" PING 2>/dev/null)" = PONG ]; do
    kill -0 $! || { tail -n 3 "$3/log" >&2; exit 1; }; sleep 0.1
done
redis-cli -s "$3/s" DBSIZE
"""
PROOFS = {"postgresql": _POSTGRESQL, "mariadb": _MARIADB, "sqlite": _SQLITE, "redis": _REDIS}


def tables_of(dump: DumpRecord, path: Path, room: Path, deadline_s: float) -> int:
    """Restore the dump, which lies at `path` of this machine, into a throw-away server in `room`; count its tables.

    Of Redis, its keys. DumpFailed when it does not load, or when this machine has no such server.
    """
    with (
        tempfile.TemporaryDirectory(dir=room, prefix=".proof-") as data,
        tempfile.TemporaryDirectory(prefix="gbs-proof-") as socket,
    ):
        argv = ["unshare", "--mount", "--propagation=private", "sh", "-euc", _PROLOGUE + PROOFS[dump.engine], "gbs"]
        try:
            done = process.run(
                [*argv, str(path), data, socket], deadline_s=deadline_s, name=f"proof of {dump.engine} {dump.database}"
            )
            return int(done.stdout.split()[-1])
        except (CommandFailed, ValueError, IndexError) as exc:
            called = f"{dump.engine} database {dump.database!r}"
            raise DumpFailed(called, f"it does not restore: {reason_of(exc)}") from exc
