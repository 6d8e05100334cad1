# Runs in web1 (sent over ssh): a listing of files and databases that is the same whenever their content is the same.
# One line each: what it is | escaped path | values. Folders have no size: that is the file system's business.
set -eu
export LC_ALL=C
cd /srv
escape='s/([^\x20-\x7e])/sprintf("\\x%02x", ord $1)/ge'

find data -printf '%P\0%y %m %U:%G %s %n %TFT%TT %l\0%i\0%b\0' | perl -0 -e '
    my (@rows, %first);
    while (defined(my $path = <>)) {
        my ($meta, $inode, $blocks) = map { my $value = <>; chomp $value; $value } 1 .. 3;
        chomp $path;
        push @rows, [$path, $meta, $inode, $blocks];
    }
    for my $row (sort { $a->[0] cmp $b->[0] } @rows) {
        my ($path, $meta, $inode, $blocks) = @$row;
        my ($type, $mode, $owner, $size, $links, $time, $target) = split / /, $meta, 7;
        my $kind = $type eq "d" ? "-" : $size;
        my $sparse = $type eq "f" && $blocks * 512 < $size / 2 ? " sparse" : "";
        my $same = $type ne "d" && $links > 1 ? " same-as=" . ($first{$inode} //= $path) : "";
        my $to = $type eq "l" ? " -> $target" : "";
        my $line = "file | $path | $type $mode $owner $kind $time$sparse$same$to";
        $line =~ s/([^\x20-\x7e])/sprintf("\\x%02x", ord $1)/ge;
        print "$line\n";
    }'
find data -type f -print0 | sort -z | xargs -0 sha256sum -z | perl -0 -ne '
    chomp; my ($sum, $path) = /^(\S+)  (.*)$/s; $path =~ s/([^\x20-\x7e])/sprintf("\\x%02x", ord $1)/ge;
    print "sha256 | $path | $sum\n"'
find data ! -type l -print0 | sort -z | xargs -0 getfacl -nps -- | sed '/^$/d' | perl -pe "chomp; $escape; s/\$/\n/; s/^/acl | /"
find data -print0 | sort -z | xargs -0 getfattr -hPd -e hex -m '^user\.' -- | sed '/^$/d' | perl -pe "chomp; $escape; s/\$/\n/; s/^/xattr | /"
find data -type f -print0 | sort -z | xargs -0 getcap -- | perl -pe "chomp; $escape; s/\$/\n/; s/^/capability | /"

runuser -u postgres -- psql -qAt -v ON_ERROR_STOP=1 shop <<'SQL'
SELECT 'postgresql | customers | ' || count(*) || ' ' || md5(string_agg(t::text, ',' ORDER BY id)) FROM customers t;
SELECT 'postgresql | orders | ' || count(*) || ' ' || md5(string_agg(t::text, ',' ORDER BY id)) FROM orders t;
SELECT 'postgresql | orders of night ' || night || ' | ' || count(*) FROM orders GROUP BY night ORDER BY night;
SELECT 'postgresql | totals | ' || count(*) || ' ' || sum(total) FROM totals;
SELECT 'postgresql | index | ' || indexname FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname;
SQL
mariadb --batch --skip-column-names crm <<'SQL'
SELECT CONCAT('mariadb | contacts | ', COUNT(*), ' ', SUM(CRC32(CONCAT_WS('|', id, name, HEX(photo), night)))) FROM contacts;
SELECT CONCAT('mariadb | calls | ', COUNT(*), ' ', SUM(CRC32(CONCAT_WS('|', id, contact, seconds)))) FROM calls;
SELECT CONCAT('mariadb | contacts of night ', night, ' | ', COUNT(*)) FROM contacts GROUP BY night ORDER BY night;
SELECT CONCAT('mariadb | called | ', COUNT(*), ' ', SUM(times)) FROM called;
SQL
