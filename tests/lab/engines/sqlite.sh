# SQLite for tests: $1 is a file.
start() { mkdir -p /srv/app; }
fill() {
    sqlite3 -batch "$1" "PRAGMA journal_mode = WAL; CREATE TABLE t AS
        WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c WHERE n < 5000)
        SELECT n, hex(n) AS m FROM c" > /dev/null
    chown 33:33 -- "$1"
}
lose() {
    printf 'not a database' > "$1"
    printf 'stale' > "$1-wal"
}
read_back() {
    stat -c '%u %a' -- "$1"
    sqlite3 -batch "$1" "SELECT count(*), max(m) FROM t"
}
