#!/bin/bash
# Boots the User-mode Linux of `kernel` on the machine's own root (started by trixie_guest.py under unshare). The kernel
# is linked against a newer C library than the machine's, so it runs in `tree`, which sees the machine below /mnt/machine.
set -eu
kernel=$1 tree=$2 folder=$3 init=$4 slower=$5
PATH=/usr/sbin:/usr/bin:/sbin:/bin

mount -t tmpfs -o mode=0755 tmpfs "$tree/mnt"
mkdir "$tree/mnt/machine" "$tree/mnt/kernel" "$tree/mnt/home"
mount --rbind / "$tree/mnt/machine"
mount --rbind "$kernel" "$tree/mnt/kernel"
mount --rbind /dev "$tree/dev"
mount -t proc proc "$tree/proc"

# Its memory is a file in TMPDIR. Its second has $slower of the machine's.
exec chroot "$tree" /usr/bin/env -i HOME=/mnt/home TMPDIR=/dev/shm "SLOW_CLOCK=$slower" \
    "LD_PRELOAD=/mnt/machine$folder/slow_clock.so:/mnt/machine$folder/whole_xstate.so" /mnt/kernel/usr/bin/linux.uml \
    mem=4G root=/dev/root rootfstype=hostfs hostfs=/mnt/machine ro "init=$init" "ubda=/mnt/machine$folder/disk" \
    uml_dir=/mnt/home con=null con0=null,fd:1 quiet "gbs_kernel=$kernel" "gbs_folder=$folder" gbs_modules=fuse,ipv6,tun
