# Runs in web1 (sent over ssh) with the night's number (1, 2 ...) as $1: what a working day does to files and databases.
set -eu
export LC_ALL=C
night=$1
cd /srv/data

echo "$night" >night
mkdir -p "new/night-$night"
for n in $(seq 1 20); do echo "night $night, file $n" >"new/night-$night/$n"; done
perl -e '
    my ($night) = @ARGV;
    for my $file (0 .. 1999) {
        my $path = sprintf "small/%02d/file-%04d.txt", $file / 50, $file;
        next unless -e $path;
        if ($file % 40 == $night % 40) { unlink $path }
        elsif ($file % 20 == ($night + 5) % 20) { open my $out, ">>", $path or die; print $out "night $night\n" }
        elsif ($file % 50 == ($night + 7) % 50) { rename $path, "$path.moved-$night" }
    }' "$night"
printf 'night %s' "$night" | dd of=big.bin bs=1M seek="$((night % 16))" conv=notrunc status=none
printf 'island %s' "$night" | dd of=sparse.img bs=1M seek="$((40 + night % 40))" conv=notrunc status=none
chmod "$((600 + night % 8))" links/first
ln -f links/first "links/linked-$night"
ln -sfn "target-$night" links/dangling
chown "$((1000 + night))" modes/unreadable
setfacl -m "u:$((1100 + night)):r" attributes/acl
setfattr -n user.origin -v "night $night" attributes/xattr

runuser -u postgres -- psql -q -v ON_ERROR_STOP=1 -v night="$night" shop <<'SQL'
INSERT INTO orders (customer, amount, note, night)
    SELECT 1 + n % 1000, n, 'of night ' || :night, :night FROM generate_series(1, 500) n;
UPDATE orders SET amount = amount + 1 WHERE id % 100 = :night % 100;
DELETE FROM orders WHERE night = 0 AND id % 97 = :night % 97;
SQL
mariadb crm <<SQL
INSERT INTO contacts (name, night) SELECT CONCAT('Of night $night, ', seq), $night FROM seq_1_to_300;
UPDATE contacts SET name = CONCAT(name, '!') WHERE id % 100 = $night % 100;
DELETE FROM calls WHERE id % 97 = $night % 97;
SQL
sync
