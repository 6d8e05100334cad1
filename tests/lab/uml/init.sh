#!/bin/bash
# Process 1 of the guest (booted by boot.sh). The machine's root is its own, read-only; all that is written goes to a disk.
# Runs the tests' command, which notes its exit status in the folder that it shares with the machine, and turns off.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TMPDIR=/var/lib/gbs-lab/tmp
root=/mnt/root

world() {
    mount -t proc proc /proc
    kernel=$(sed -n 's/.*gbs_kernel=\([^ ]*\).*/\1/p' /proc/cmdline)
    folder=$(sed -n 's/.*gbs_folder=\([^ ]*\).*/\1/p' /proc/cmdline)
    modules=$(sed -n 's/.*gbs_modules=\([^ ]*\).*/\1/p' /proc/cmdline)
    mount /dev/ubda /mnt
    mkdir /mnt/upper /mnt/work /mnt/labs $root
    for module in overlay loop ${modules//,/ }; do modprobe -d "$kernel" "$module"; done
    mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay $root
    mount -t proc proc $root/proc
    mount -t sysfs sysfs $root/sys
    mount -t devtmpfs devtmpfs $root/dev
    ln -s /proc/self/fd $root/dev/fd
    ln -s fd/0 $root/dev/stdin
    ln -s fd/1 $root/dev/stdout
    ln -s fd/2 $root/dev/stderr
    mkdir $root/dev/pts $root/dev/shm
    mount -t devpts devpts $root/dev/pts
    mount -t tmpfs tmpfs $root/dev/shm
    mount -t tmpfs -o mode=0755 tmpfs $root/run
    # The labs lie on the disk itself, not on the overlay; those of the machine are not seen.
    mkdir -m 1777 /mnt/labs/tmp
    mkdir -p $root/var/lib/gbs-lab $root/mnt/shared $root/mnt/machine
    mount --bind /mnt/labs $root/var/lib/gbs-lab
    mount -t hostfs -o "$folder" none $root/mnt/shared
    hostname trixie
    ip link set lo up
    # nsenter finds a root only where the namespace has its root: chroot would not do.
    cd $root
    pivot_root . mnt/machine
    umount -l /mnt/machine
}

set -e
world
set +e
bash /mnt/shared/command
sync
echo o >/proc/sysrq-trigger
sleep 1d
