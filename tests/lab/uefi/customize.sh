#!/bin/sh
# mmdebstrap's last hook: what can only be done once the packages are installed. $1 is the root of the guest.
set -eu
root=$1

echo 9b50000000000000000000000000a002 >"$root/etc/machine-id"
echo efi1 >"$root/etc/hostname"
cat >"$root/etc/fstab" <<'FSTAB'
LABEL=root  /          ext4  noatime,errors=remount-ro  0  1
LABEL=ESP   /boot/efi  vfat  umask=0077                 0  0
LABEL=data  /srv       ext4  noatime                    0  2
FSTAB

chroot "$root" systemctl --quiet enable qemu-guest-agent.service
chroot "$root" systemctl --quiet mask \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-pstore.service grub-common.service getty@tty1.service remote-fs.target \
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount dev-hugepages.mount dev-mqueue.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount
