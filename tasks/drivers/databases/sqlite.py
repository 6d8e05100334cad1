"""SQLite: each declared file is a database, copied as of one moment through its backup API (sqlite3(1), `.backup`).

The file itself stays in the copy of the client's files, for its owner and mode; what it holds comes from the dump. Its
journals, which belong to no other moment than their own, are left out.
"""

from tasks.drivers.databases.engine import Engine

SQLITE = Engine(
    processes=(),
    data_folders=(),
    suffix=".sqlite",
    ready="command -v sqlite3 > /dev/null",
    databases="""
for file do
    [ -f "$file" ] || { echo "$file is not a file" >&2; exit 1; }
    printf '%s' "$file" | od -An -v -tx1 | tr -d ' \\n'
    stat -c ' %s' -- "$file"
done
""",
    # A dot-command splits its words by rules of its own: the dump is named from its own folder, by a name of ours.
    # Without the test, sqlite3 would make an empty database of a file that is not there.
    dump="""
test -f "$1"
(cd -- "${2%/*}" && nicely sqlite3 -batch -bail "$1" ".timeout 60000" ".backup main ${2##*/}")
""",
    check="""[ "$(nicely sqlite3 -batch -bail "$2" "PRAGMA integrity_check")" = ok ]""",
    # Emptied first: whatever it was, a database of no pages takes any dump, and owner and mode stay.
    restore="""
rm -f -- "$1-wal" "$1-shm" "$1-journal"
: > "$1"
(cd -- "${2%/*}" && sqlite3 -batch -bail "$1" ".restore main ${2##*/}")
[ "$(sqlite3 -batch -bail "$1" "PRAGMA integrity_check")" = ok ]
""",
    accounts=None,
)
