"""Redis and Valkey: the server's own snapshot (BGSAVE), copied once it says that it is whole; redis-check-rdb(1).

A server is one database, `all`. Commands go through standard input; a login file holds those that come before ours,
such as `AUTH user password`. A dump is restored by letting the server replicate, once, from a server of ours that has
loaded it: so it replaces everything, also an append-only file, and nothing need be stopped.
"""

from tasks.drivers.databases.engine import Engine

_SPEAK = """
redis() {
    socket=
    for found in /run/redis/redis-server.sock /run/redis/redis.sock /run/redis.sock /tmp/redis.sock; do
        if [ -S "$found" ]; then socket=$found; fi
    done
    first=0
    if [ -n "$login" ]; then first=$(grep -c . -- "$login"); fi
    said=$({ [ -z "$login" ] || cat -- "$login"; printf '%s\\n' "$1"; } | redis-cli ${socket:+-s "$socket"})
    said=$(printf '%s\\n' "$said" | tr -d '\\r')
    case $first:$said in 0:* | *:OK*) ;; *) printf '%s\\n' "$said" | sed -n '1s/^/login: /p' >&2; return 1 ;; esac
    printf '%s\\n' "$said" | tail -n "+$((first + 1))"
}
option() { redis "CONFIG GET $1" | sed -n 2p; }
info() { redis "INFO $1" | sed -n "s/^$2://p"; }
saved() { while [ "$(info persistence rdb_bgsave_in_progress)" = 1 ]; do sleep 0.2; done; }
told() {
    answer=$(redis "$1" | tail -n 1)
    case $answer in $2) ;; *) echo "${1%% *}: ${answer:-no answer}" >&2; exit 1 ;; esac
}
"""

REDIS = Engine(
    processes=("redis-server", "valkey-server"),
    data_folders=("/var/lib/redis/*", "/var/lib/valkey/*"),
    suffix=".rdb",
    ready=f"{_SPEAK} told PING PONG",
    databases=f"""{_SPEAK}
size=$(info memory used_memory)
[ -n "$size" ] || {{ redis PING >&2; exit 1; }}
echo "616c6c $size"
""",
    dump=f"""{_SPEAK}
saved
told BGSAVE 'Background saving started'
saved
state=$(info persistence rdb_last_bgsave_status)
[ "$state" = ok ] || {{ echo "the server's snapshot: ${{state:-no answer}}" >&2; exit 1; }}
cp -- "$(option dir)/$(option dbfilename)" "$2"
""",
    check='nicely redis-check-rdb "$2" > /dev/null',
    restore=f"""{_SPEAK}
folder=$(mktemp -d)
ln -s -- "$2" "$folder/dump.rdb"
word=$(od -An -N 16 -tx1 /dev/urandom | tr -d ' \\n')
port=$((20000 + $$ % 12000))
printf '%s\\n' 'bind 127.0.0.1' "port $port" "requirepass $word" "dir $folder" 'save ""' |
    redis-server - > "$folder/log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null; rm -rf -- "$folder"' EXIT
before=$(option masterauth)
told "CONFIG SET masterauth $word" OK
told "REPLICAOF 127.0.0.1 $port" OK*
while [ "$(info replication master_link_status)" != up ] || [ "$(info replication master_sync_in_progress)" != 0 ]; do
    kill -0 $server || {{ tail -n 1 "$folder/log" >&2; told "REPLICAOF NO ONE" OK; exit 1; }}
    sleep 0.2
done
told "REPLICAOF NO ONE" OK
told "CONFIG SET masterauth \\"$before\\"" OK
told SAVE OK
""",
    accounts=None,
)
