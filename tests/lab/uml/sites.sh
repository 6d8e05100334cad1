#!/bin/bash
# In the guest of nfs_guest.py: two sites, near and far, each a network namespace with an NFSv4.2 server and an XFS to
# export, and a cable between them. A process that lies in /run/site-<name>.pid has a server's namespaces.
set -euo pipefail
near=10.9.0.1 far=10.9.0.2

ip netns add near
ip netns add far
ip link add cable netns near type veth peer name cable netns far
mkdir -p /mnt/exports
for site in near far; do
    ip -n $site link set lo up
    ip -n $site link set cable up
    ip -n $site address add "${!site}/24" dev cable
    mkdir "/mnt/exports/$site"
    truncate -s 500M "/var/lib/gbs-lab/$site.xfs"
    mkfs.xfs -q "/var/lib/gbs-lab/$site.xfs"
    mount -o loop "/var/lib/gbs-lab/$site.xfs" "/mnt/exports/$site"
done
for site in near far; do
    # Its list of exports and its state are its own: a mount namespace.
    nsenter --net=/run/netns/$site unshare --mount bash -euo pipefail <<END
mount -t tmpfs tmpfs /var/lib/nfs
mkdir -p /var/lib/nfs/v4recovery /var/lib/nfs/rpc_pipefs
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
mount -t nfsd nfsd /proc/fs/nfsd
echo 10 >/proc/fs/nfsd/nfsv4gracetime
echo 10 >/proc/fs/nfsd/nfsv4leasetime
exportfs -o rw,no_root_squash,no_subtree_check,fsid=0,sync "10.9.0.0/24:/mnt/exports/$site"
rpc.mountd --no-udp --no-nfs-version 3 2>/dev/null
rpc.nfsd --no-nfs-version 3 3
sleep infinity </dev/null >/dev/null 2>&1 &
echo \$! >/run/site-$site.pid
END
done
