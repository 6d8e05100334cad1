#!/bin/bash
# Process 1 of a lab KVM host (started by kvm_host.py under unshare): makes the host's own world, starts its daemons
# and reaps. The host dies with this process.
set -eu
name=$1 directory=$2 tree=${3-}
PATH=/usr/sbin:/usr/bin:/sbin:/bin

# Nothing is done before the lab has written down who we are: a lab that crashes here closes the pipe instead.
read -r _go

hostname "$name"
for path in etc/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt etc/hostname; do
    mount --bind "$directory/root/$path" "/$path"
done
# Another release's programs (newer_host.py): /bin, /sbin and /lib are links into /usr.
if [ -n "$tree" ]; then
    for path in etc/ld.so.cache etc/alternatives usr; do
        mount --bind "$tree/$path" "/$path"
    done
fi
# sshd's shell reads it for each command; what a developer put there may take a second each time.
if [ -e /root/.bashrc ]; then mount --bind /dev/null /root/.bashrc; fi
mount -t tmpfs -o mode=0755,size=512m tmpfs /run
mkdir -p /run/sshd /run/lock /run/libvirt /run/gbs
chmod 1777 /run/lock
chown libvirt-qemu: /run/gbs

exec </dev/null
/usr/sbin/sshd -D -e -f "$directory/sshd/sshd_config" &
virtlogd -d
libvirtd -d
touch /run/lab-host-ready

set +e
while :; do
    sleep 1d &
    wait
done
