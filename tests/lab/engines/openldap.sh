# OpenLDAP for tests: $1 is a suffix.
start() {
    install -d -o openldap -g openldap /run/slapd
    slapd -h ldapi:/// -u openldap -g openldap -F /etc/ldap/slapd.d
    until ldapwhoami -Q -Y EXTERNAL -H ldapi:/// > /dev/null 2>&1; do sleep 0.1; done
}
end() { pkill -9 -x slapd; }
stopped() {
    pkill -x slapd
    while pgrep -x slapd > /dev/null; do sleep 0.1; done
    "$@"
    chown -R openldap: /var/lib/ldap
    start
}
add() {
    for n in $(seq 200); do
        printf 'dn: ou=unit%s,%s\nobjectClass: organizationalUnit\nou: unit%s\n\n' "$n" "$1" "$n"
    done | slapadd -q -b "$1" -l /dev/stdin
}
empty() { rm /var/lib/ldap/*.mdb; slapadd -q -b "$1" -l /dev/null; }
fill() { stopped add "$1"; }
lose() { stopped empty "$1"; }
read_back() { slapcat -b "$1" | grep -c '^dn: ou=unit' || true; }
