"""MariaDB and MySQL: one consistent SQL dump per database, users apart (mariadb-dump(1)).

The dump ends with a line that only a whole dump has; a killed one does not. A login file is an option file with a
section `[client]`.
"""

from tasks.drivers.databases.engine import Accounts, Engine

_LOGIN = '${login:+"--defaults-extra-file=$login"}'
_DUMP = f"$(command -v mariadb-dump || command -v mysqldump) {_LOGIN}"
CLIENT = f"$(command -v mariadb || command -v mysql) {_LOGIN}"

MARIADB = Engine(
    processes=("mariadbd", "mysqld"),
    data_folders=("/var/lib/mysql/*",),
    suffix=".sql",
    ready=f'{CLIENT} --batch -e "SELECT 1" > /dev/null',
    # BINARY: the schema's own collation takes crm and CRM for one database.
    databases=f"""
{CLIENT} --batch --skip-column-names -e "
    SELECT HEX(schema_name), COALESCE(SUM(data_length + index_length), 0)
    FROM information_schema.schemata LEFT JOIN information_schema.tables ON table_schema = BINARY schema_name
    WHERE BINARY schema_name NOT IN ('information_schema', 'performance_schema', 'mysql', 'sys')
    GROUP BY HEX(schema_name)"
""",  # noqa: S608
    dump=f"""
nicely {_DUMP} --single-transaction --quick --routines --events --triggers --hex-blob --add-drop-database \\
    --databases -- "$1" > "$2"
""",
    check='tail -n 1 -- "$2" | grep -q "^-- Dump completed"',
    restore=f'{CLIENT} < "$2"',
    accounts=Accounts(
        dump=f'{_DUMP} --system=users --insert-ignore > "$1"',
        check='grep -q "USER" -- "$1"',
        restore=f'{CLIENT} < "$1"',
    ),
)
