#!/bin/bash
# Process 1 of a client of the lab whose file systems can be snapshotted (started by snapshot_client.py under unshare):
# the machine's programs, a /run and a /srv of its own, an sshd. The client dies with this process.
set -eu
name=$1 directory=$2
PATH=/usr/sbin:/usr/bin:/sbin:/bin

# Nothing is done before the lab has written down who we are: a lab that crashes here closes the pipe instead.
read -r _go

hostname "$name"
# sshd's shell reads it for each command; what a developer put there may take a second each time.
if [ -e /root/.bashrc ]; then mount --bind /dev/null /root/.bashrc; fi
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /run/sshd /run/lock
chmod 1777 /run/lock

mkdir /run/top
mount -o loop "$directory/disk" /run/top
device=$(findmnt -no SOURCE /run/top)
btrfs -q subvolume create /run/top/@srv
btrfs -q subvolume create /run/top/@log
mount -o subvol=@srv "$device" /srv
mkdir /srv/log
echo "seen by nobody while @log is mounted" >/srv/log/hidden
mount -o subvol=@log "$device" /srv/log
umount /run/top
# As systemd makes it: whoever binds a part of the tree is told of every mount in it.
mount --make-rshared /

exec </dev/null
/usr/sbin/sshd -D -e -f "$directory/sshd/sshd_config" &
touch /run/lab-host-ready
set +e
while :; do
    sleep 1d &
    wait
done
