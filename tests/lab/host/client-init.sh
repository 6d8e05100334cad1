#!/bin/bash
# Process 1 of a client of the lab (started by database_client.py under unshare): a root file system of its own, of a
# shared tree below and its own changes on top, with an sshd. The client dies with this process.
set -eu
name=$1 directory=$2 tree=$3
PATH=/usr/sbin:/usr/bin:/sbin:/bin

# Nothing is done before the lab has written down who we are: a lab that crashes here closes the pipe instead.
read -r _go

hostname "$name"
root=$directory/root
mkdir -p "$directory/upper" "$directory/work" "$root"
mount -t overlay -o "lowerdir=$tree,upperdir=$directory/upper,workdir=$directory/work" overlay "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind -o ro /sys "$root/sys"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mkdir -p "$root/run/sshd" "$root/run/lock" "$root$directory/sshd"
chmod 1777 "$root/run/lock"
mount --bind "$directory/sshd" "$root$directory/sshd"

exec </dev/null
exec chroot "$root" /bin/bash -c '
    /usr/sbin/sshd -D -e -f "$1" &
    touch /run/lab-host-ready
    while :; do sleep 1d & wait; done
' client "$directory/sshd/sshd_config"
