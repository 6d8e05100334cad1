#!/bin/sh
# mmdebstrap's last hook: what can only be done once the packages are installed. $1 is the root of the guest.
set -eu
root=$1

# Made per instance; the machine id is set, if only to all instances' same, so that no boot counts as the first one.
rm -f "$root"/etc/ssh/ssh_host_*
echo 9b50000000000000000000000000a001 >"$root/etc/machine-id"

cat >"$root/etc/fstab" <<'FSTAB'
/dev/mapper/vg0-root  /      ext4  noatime,errors=remount-ro  0  1
LABEL=boot            /boot  ext4  noatime                    0  2
/dev/mapper/vg0-var   /var   xfs   noatime                    0  0
FSTAB
printf 'nameserver 10.0.2.3\n' >"$root/etc/resolv.conf"
printf '127.0.0.1 localhost\n' >"$root/etc/hosts"

chroot "$root" systemctl --quiet enable systemd-networkd.service qemu-guest-agent.service
chroot "$root" systemctl --quiet mask \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-networkd-wait-online.service systemd-network-generator.service systemd-pstore.service grub-common.service \
    lvm2-monitor.service blk-availability.service getty@tty1.service systemd-logind.service remote-fs.target \
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount dev-hugepages.mount dev-mqueue.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount

# Debian's wrappers of these start perl for each call, a second of an emulated processor.
for program in dropdb pg_dump pg_dumpall pg_isready pg_restore psql; do
    ln -s "../../lib/postgresql/15/bin/$program" "$root/usr/local/bin/$program"
done
