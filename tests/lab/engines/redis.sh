# Redis for tests: a server is one database.
cli() { redis-cli -s /run/redis/redis-server.sock "$@"; }
start() {
    install -d -o redis -g redis /run/redis
    runuser -u redis -- redis-server --port 0 --unixsocket /run/redis/redis-server.sock --save '' --appendonly yes \
        --dir /var/lib/redis --daemonize yes > /dev/null
    until [ "$(cli ping)" = PONG ]; do sleep 0.1; done
}
end() { pkill -9 -x redis-server; }
fill() { seq 5000 | sed 's/.*/SET key& value&/' | cli > /dev/null; }
lose() { printf 'FLUSHALL\nSET other 1\n' | cli > /dev/null; }
read_back() { printf 'DBSIZE\nGET key4711\nCONFIG GET masterauth\nCONFIG GET appendonly\n' | cli; }
account() { cli ACL SETUSER keeper on ">$1" '~*' '&*' +@all > /dev/null; }
login() { printf 'AUTH keeper %s\n' "$1"; }
