"""OpenLDAP: one LDIF per database, its configuration apart (slapcat(8), slapadd(8)).

A database is named by its suffix. slapcat reads one moment of it while slapd runs. A restore stops slapd meanwhile.
"""

from tasks.drivers.databases.engine import Accounts, Engine

# A line `<suffix in hexadecimal> <folder>` for each database that has both.
_DATABASES = """
databases() {
    slapcat -n 0 -o ldif-wrap=no -a '(olcSuffix=*)' | {
        suffix= folder=
        while read -r key value; do
            case $key in
                olcSuffix:) : "${suffix:=$(printf '%s' "$value" | od -An -v -tx1 | tr -d ' \\n')}" ;;
                olcSuffix::) : "${suffix:=$(printf '%s' "$value" | base64 -d | od -An -v -tx1 | tr -d ' \\n')}" ;;
                olcDbDirectory:) folder=$value ;;
                '') [ -z "$suffix" ] || [ -z "$folder" ] || printf '%s %s\\n' "$suffix" "$folder"; suffix= folder= ;;
            esac
        done
    }
}
"""

OPENLDAP = Engine(
    processes=("slapd",),
    data_folders=("/var/lib/ldap/*", "/var/lib/openldap/*"),
    suffix=".ldif",
    ready="ps -eo comm= | grep -qx slapd && slapcat -n 0 > /dev/null",
    databases=f"""{_DATABASES}
ps -eo comm= | grep -qx slapd || {{ echo "slapd does not run" >&2; exit 1; }}
slapcat -n 0 > /dev/null
databases | while read -r suffix folder; do
    size=$(du -sB1 -- "$folder")
    printf '%s %s\\n' "$suffix" "${{size%%[!0-9]*}}"
done
""",
    dump='nicely slapcat -b "$1" -o ldif-wrap=no -l "$2"',
    # slapcat ends each entry with an empty line; slapadd reads all of it against the schema and writes nothing.
    check="""
[ "$(tail -n 1 -- "$2")" = "" ]
nicely slapadd -u -b "$1" -l "$2"
""",
    restore=f"""{_DATABASES}
wanted=$(printf '%s' "$1" | od -An -v -tx1 | tr -d ' \\n')
folder=$(databases | sed -n "s/^$wanted //p")
[ -n "$folder" ] || {{ echo "its configuration names no such database" >&2; exit 1; }}
if [ -d /run/systemd/system ]; then
    stop() {{ systemctl stop slapd; }}
    start() {{ systemctl start slapd; }}
else
    words=$(cat /run/slapd/slapd.args)
    stop() {{ pkill -x slapd; while ps -eo comm= | grep -qx slapd; do sleep 0.1; done; }}
    start() {{ eval "$words"; }}
fi
stop
trap start EXIT
find "$folder" -maxdepth 1 -type f ! -name DB_CONFIG -delete
slapadd -q -b "$1" -l "$2"
chown -R --reference="$folder" -- "$folder"
""",
    accounts=Accounts(
        dump='slapcat -n 0 -o ldif-wrap=no -l "$1"',
        check='[ "$(tail -n 1 -- "$1")" = "" ] && grep -q "^dn: cn=config" -- "$1"',
        # The files that it is made of came back with the client's files; this is for a rebuild by hand.
        restore=":",
    ),
)
