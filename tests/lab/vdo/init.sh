#!/bin/bash
# Process 1 of the guest of vdo_guest.py: devices by udev, the checkout from a disk, its command, the answer to a second
# serial port, off. No service runs.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for place in shm pts; do mkdir -p /dev/$place; done
mount -t devpts devpts /dev/pts
for place in /dev/shm /run /tmp; do mount -t tmpfs tmpfs $place; done
mkdir -p /run/lock /run/lvm /run/gbs
/usr/lib/systemd/systemd-udevd --daemon
udevadm trigger --type=subsystems --action=add
udevadm trigger --action=add
udevadm settle
ip link set lo up 2>/dev/null
tar -xf /dev/vdc -C /run/gbs
cd /run/gbs || exit
bash ./command
stty -F /dev/ttyS1 raw
tar -cf - -C /run/gbs/answer . | cat >/dev/ttyS1
sync
echo o >/proc/sysrq-trigger
sleep 1d
