# Runs in web1 (sent over ssh): the files and databases that a backup has to bring back.
set -eu
export LC_ALL=C
rm -rf /srv/data && mkdir -p /srv/data && cd /srv/data

# About 2,000 small files in 40 folders, with owners and modes of several kinds (numbers: no such users exist here).
perl -e '
    for my $folder (0 .. 39) {
        my $name = sprintf "small/%02d", $folder;
        mkdir "small"; mkdir $name;
        for my $file (0 .. 49) {
            my $path = sprintf "%s/file-%04d.txt", $name, $folder * 50 + $file;
            open my $out, ">", $path or die; print $out "night 0 of $path\n" x ($file % 7 + 1); close $out;
            chown 1000 + $folder % 5, 2000 + $file % 3, $path;
            chmod((0644, 0600, 0640, 0755, 0444)[$file % 5], $path);
        }
    }'
head -c 16M /dev/urandom >big.bin
truncate -s 80M sparse.img
printf 'island' | dd of=sparse.img bs=1M seek=40 conv=notrunc status=none

mkdir modes && cd modes
cp /usr/bin/true setuid && chown 0:1234 setuid && chmod 4755 setuid
cp /usr/bin/true setgid && chmod 2755 setgid
cp /usr/bin/true with-capability && setcap cap_net_bind_service=+ep with-capability
mkdir sticky shared && chmod 1777 sticky && chown 0:1234 shared && chmod 2770 shared
echo secret >unreadable && chmod 000 unreadable
cd ..

mkdir links && cd links
echo one >first && ln first second && ln first ../third-name-of-one
ln -s first relative && ln -s /etc/hostname absolute && ln -s nowhere dangling && mkfifo pipe
cd ..

mkdir attributes && cd attributes
echo acl >acl && setfacl -m u:1001:rw,g:2001:r acl
mkdir inherited && setfacl -m u:1002:rwx -m d:u:1002:rwx,d:g:2002:rx inherited && echo x >inherited/child
echo xattr >xattr && setfattr -n user.origin -v 'night 0' xattr && setfattr -n user.binary -v 0x00ff10 xattr
cd ..

mkdir names && cd names
echo 1 >'with space' && echo 2 >"$(printf 'with\nnewline')" && echo 3 >"$(printf 'invalid-\377\376-utf8')"
echo 4 >'-starts-with-dash' && echo 5 >'* quote" '\''star' && echo 6 >'grüße-日本' && : >empty
cd ..
touch -d '1999-12-31T23:59:59.123456789Z' names/empty
touch -d '2038-01-20T00:00:00Z' 'names/with space'
echo 0 >night

runuser -u postgres -- psql -q -v ON_ERROR_STOP=1 <<'SQL'
DROP DATABASE IF EXISTS shop;
CREATE DATABASE shop;
\connect shop
CREATE TABLE customers (id serial PRIMARY KEY, name text NOT NULL, city text, since date NOT NULL);
CREATE TABLE orders (id serial PRIMARY KEY, customer int NOT NULL REFERENCES customers, amount numeric(10,2) NOT NULL,
                     note text, night int NOT NULL DEFAULT 0);
INSERT INTO customers (name, city, since)
    SELECT 'Kunde ' || n || ' Grüße', (ARRAY['Köln','Łódź','東京','Oslo'])[1 + n % 4], date '2020-01-01' + n
    FROM generate_series(1, 1000) n;
INSERT INTO orders (customer, amount, note)
    SELECT 1 + n % 1000, n * 1.25, CASE WHEN n % 10 = 0 THEN NULL ELSE repeat('x', n % 60) END
    FROM generate_series(1, 5000) n;
CREATE INDEX orders_customer ON orders (customer);
CREATE VIEW totals AS SELECT customer, sum(amount) AS total FROM orders GROUP BY customer;
SQL
mariadb <<'SQL'
DROP DATABASE IF EXISTS crm;
CREATE DATABASE crm CHARACTER SET utf8mb4;
USE crm;
CREATE TABLE contacts (id int AUTO_INCREMENT PRIMARY KEY, name varchar(100) NOT NULL, photo varbinary(64),
                       night int NOT NULL DEFAULT 0);
CREATE TABLE calls (id int AUTO_INCREMENT PRIMARY KEY, contact int NOT NULL, seconds int,
                    FOREIGN KEY (contact) REFERENCES contacts (id));
INSERT INTO contacts (name, photo) SELECT CONCAT('Contact ', seq, ' ñ €'), UNHEX(SHA2(seq, 256)) FROM seq_1_to_3000;
INSERT INTO calls (contact, seconds) SELECT 1 + seq % 3000, IF(seq % 9 = 0, NULL, seq % 600) FROM seq_1_to_3000;
CREATE VIEW called AS SELECT contact, COUNT(*) AS times FROM calls GROUP BY contact;
SQL
sync
