# MariaDB for tests: $1 is a database.
start() {
    install -d -o mysql -g mysql /run/mysqld
    setsid mariadbd --user=mysql --skip-networking --innodb-buffer-pool-size=16M --innodb-log-file-size=8M \
        > /var/log/mariadbd.log 2>&1 < /dev/null &
    until mariadb-admin --silent ping; do sleep 0.1; done
}
end() { pkill -9 -x mariadbd; }
fill() {
    mariadb -e "CREATE DATABASE \`$(printf %s "$1" | sed 's/`/``/g')\`"
    mariadb -D "$1" -e "CREATE TABLE t AS SELECT seq AS n, md5(seq) AS m FROM seq_1_to_5000"
}
lose() { mariadb -D "$1" -e "DROP TABLE t; CREATE TABLE other (n int)"; }
read_back() { mariadb -N -D "$1" -e "SELECT count(*), max(m) FROM t"; }
account() { mariadb -e "GRANT ALL ON *.* TO keeper@localhost IDENTIFIED BY '$1'"; }
login() { printf '[client]\nuser=keeper\npassword=%s\n' "$1"; }
