#!/bin/sh
# mmdebstrap's last hook: what can only be done once the packages are installed. $1 is the root of the guest.
set -eu
root=$1

echo 9b50000000000000000000000000a003 >"$root/etc/machine-id"
echo btrfs1 >"$root/etc/hostname"
cat >"$root/etc/fstab" <<'FSTAB'
LABEL=root  /      btrfs  subvol=@,noatime      0  0
LABEL=root  /home  btrfs  subvol=@home,noatime  0  0
FSTAB

chroot "$root" systemctl --quiet enable qemu-guest-agent.service
chroot "$root" systemctl --quiet mask \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer \
    systemd-pstore.service grub-common.service getty@tty1.service remote-fs.target \
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount dev-hugepages.mount dev-mqueue.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount

# A kernel to upgrade to: Debian's package of the other flavour, with the modules that the guest has a use for. Not
# compressed, as the guest may be emulated.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache depends linux-image-amd64 | sed -n 's/^  Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
apt-get --quiet download "$kernel"
dpkg-deb --raw-extract "$kernel"_*.deb tree
find tree/lib/modules/*/kernel -name '*.ko' \
    ! -path '*/fs/btrfs/*' ! -path '*/crypto/*' ! -path '*/lib/*' ! -path '*/virtio/*' \
    ! -name 'virtio*' ! -name 'sd_mod.ko' ! -name 'scsi_*.ko' ! -name 't10-pi.ko' ! -name 'crc*.ko' -delete
rm -rf tree/usr/share/doc tree/usr/share/lintian
dpkg-deb -Znone --build tree "$root/root/upgrade.deb"
