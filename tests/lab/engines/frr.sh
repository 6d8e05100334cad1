# FRRouting for tests: a router in a network of its own, with a login that leads to its prompt.
start() {
    install -d -o frr -g frr /run/frr
    printf 'hostname core1\npassword zebra-pass\n!\ninterface lo\n ip address 192.0.2.1/32\nexit\n!\n' > /etc/frr/frr.conf
    touch /etc/frr/vtysh.conf
    chown -R frr:frr /etc/frr
    unshare --net /usr/lib/frr/zebra -d -A 127.0.0.1
    unshare --net /usr/lib/frr/staticd -d -A 127.0.0.1
    until vtysh -c "show version" > /dev/null 2>&1; do sleep 0.1; done
    vtysh -b > /dev/null
    id backup > /dev/null 2>&1 || useradd -m -G frrvty,frr -s /usr/bin/vtysh backup
    usermod -aG frrvty,frr -s /usr/bin/vtysh backup
}
configure() { vtysh -c "configure terminal" -c "$1" > /dev/null; }
