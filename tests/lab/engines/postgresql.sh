# PostgreSQL for tests: $1 is a database.
as_postgres() { runuser -u postgres -- "$@"; }
start() {
    cd /etc/postgresql/*/main
    printf "listen_addresses = ''\nfsync = off\njit = off\nshared_buffers = 16MB\n" >> postgresql.conf
    pg_ctlcluster "$(basename "$(dirname "$PWD")")" main start
    until as_postgres pg_isready -q; do sleep 0.1; done
}
end() { pkill -9 -x postgres; }
fill() {
    as_postgres createdb -- "$1"
    PGDATABASE=$1 as_postgres psql -Xq -c "CREATE TABLE t AS SELECT n, md5(n::text) AS m FROM generate_series(1, 5000) n"
}
lose() { PGDATABASE=$1 as_postgres psql -Xq -c "DROP TABLE t; CREATE TABLE other (n int)"; }
read_back() { PGDATABASE=$1 as_postgres psql -XAtq -c "SELECT count(*), max(m) FROM t"; }
account() {
    as_postgres psql -Xq -c "CREATE ROLE keeper LOGIN SUPERUSER PASSWORD '$1'"
    sed -i '1i local all keeper scram-sha-256' /etc/postgresql/*/main/pg_hba.conf
    as_postgres psql -Xq -c "SELECT pg_reload_conf()" > /dev/null
}
login() { printf '[gbs]\nhost=/var/run/postgresql\nuser=keeper\npassword=%s\n' "$1"; }
