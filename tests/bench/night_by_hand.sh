#!/bin/bash
# A night of many clients without GBS, one client after the other, as a careful person would write it.
# Usage: night_by_hand.sh <rsnapshot | same-work> <root> <a command that logs in, to which words are added> <client>...
#
# rsnapshot: `rsnapshot sync` and `rsnapshot daily` straight from the client, and nothing else.
# same-work: what GBS does: facts; rsync into a new tree, linked to last night's; a sha256 of every file that came, into
#            a listing; all flushed; put in the place of last night's; then rsnapshot from there.
set -euo pipefail
what=$1 root=$2 login=$3
shift 3
export LC_ALL=C

keep() { # keep <client> <source>
    mkdir -p "$root/permanent/$1"
    {
        printf '%s\t%s\n' config_version 1.2 snapshot_root "$root/permanent/$1/" lockfile "$root/$1.pid" \
            cmd_rsync /usr/bin/rsync cmd_rm /bin/rm cmd_ssh "$login" sync_first 1 link_dest 1 \
            rsync_short_args -aHAXS rsync_long_args '--numeric-ids --delete'
        printf 'retain\tdaily\t14\nbackup\t%s\t./\n' "$2"
    } >"$root/$1.conf"
    rsnapshot -c "$root/$1.conf" sync
    rsnapshot -c "$root/$1.conf" daily
}

facts() {
    # What the client lacks (LVM, another package manager) is left out.
    "$login" 127.0.0.1 'lsblk -J -b -o NAME,TYPE,SIZE,FSTYPE,UUID,LABEL,PARTTYPE,PTTYPE,MOUNTPOINTS; findmnt -J -b -l
        lvs --reportformat json; cat /etc/os-release; uname -rmn; cat /etc/machine-id; ls /sys/firmware/efi
        dpkg-query -W; rpm -qa; ps -e -o args' >"$root/$1.facts" 2>/dev/null || test -s "$root/$1.facts"
}

pull() {
    local night=$root/overnight/$1 new=$root/overnight/.$1 links=()
    mkdir -p "$new/data"
    if test -e "$night"; then links=(--link-dest="$night/data"); fi
    rsync -aHAXSx --numeric-ids --relative --delete --delete-excluded --stats "${links[@]}" -e "$login" \
        "127.0.0.1:/srv/$1" "$new/data/" >/dev/null
    (cd "$new/data" && find . -type f -links 1 -print0 | xargs -0 -r openssl dgst -sha256 -r >../SHA256SUMS)
    cp "$root/$1.facts" "$new/facts"
    sync -f "$new/SHA256SUMS"
    if test -e "$night"; then mv "$night" "$night.old"; fi
    mv "$new" "$night"
    sync "$root/overnight"
    rm -rf "$night.old"
}

mkdir -p "$root/overnight" "$root/permanent"
for client; do
    case $what in
        rsnapshot) keep "$client" "root@127.0.0.1:/srv/$client/" ;;
        same-work)
            facts "$client"
            pull "$client"
            keep "$client" "$root/overnight/$client/"
            sync "$root/permanent/$client/daily.0"
            ;;
    esac
done
