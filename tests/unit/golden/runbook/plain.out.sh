#!/bin/bash
# Brings back the VM web1 (client web1) by hand: plain tools, nothing of GBS.
# Made 2026-11-26 06:00 UTC from what the stores had then; make it anew after every night.
#
# Disks: image 20261124T000000Z, as of 2026-11-02 02:00:00 UTC (application-consistent).
# Files: night 20261102T020000Z (overnight), ended 2026-11-02 02:00:00 UTC, 1 files.
#
# Run it as root with bash on a machine that sees the stores. It needs there: bash, coreutils, qemu-img, rsync,
# openssh, and guestfish with rsync and the file systems in its appliance
#   Debian: qemu-utils guestfish libguestfs-rsync libguestfs-xfs linux-image-cloud-amd64
#   RHEL: qemu-img guestfs-tools libguestfs-rsync libguestfs-xfs
# On the KVM host: libvirt with virsh, rsync.
# It stops at the first check that fails, and says which. It never overwrites: what it made before it stopped is to be
# removed by hand before it runs again.
set -euo pipefail


# ---------------------------------------------------------------- What you decide. Look at each line before you begin.

# A folder that is made here, for the disks while they are worked on. It must not exist. Letters, digits, . _ - / only.
WORK=/var/tmp/recover-web1

# Where the stores are mounted on this machine, the image and the night.
STORE=/srv/gbs
IMAGE="$STORE"/images/kvm1/web1/20261124T000000Z
NIGHT="$STORE"/overnight/web1

# The KVM host that the VM comes to. Empty: this very machine.
KVM_HOST=kvm1.example.org
KVM_USER=root
KVM_PORT=22
KVM_KEY=/etc/gbs/id_ed25519
# Its host key must be in here (known_hosts(5)); without the file, ssh asks you.
KNOWN_HOSTS=/etc/gbs/known_hosts
LIBVIRT=qemu:///system

# Where each disk goes on the KVM host.
DISK_1=/images/a.qcow2  # 1073741824 bytes at most, raw

# What its network cards are connected to there, in the definition's order.
# (none: it has no card on a network or bridge)

# How the VM is reached when it runs. The key is one that it lets in; the host keys are known from its own files.
GUEST=web1.example.org
GUEST_USER=root
GUEST_PORT=22
GUEST_KEY=/etc/gbs/id_ed25519

# Not yours to decide: the VM as libvirt knows it.
VM=web1
UUID=90a82260-1496-49c7-872c-574b9ce0acc3

# ------------------------------------------------------------------------------------------------------------- Helpers

export LC_ALL=C
# libguestfs starts QEMU itself; where KVM does not work here, also: export LIBGUESTFS_BACKEND_SETTINGS=force_tcg
export LIBGUESTFS_BACKEND=${LIBGUESTFS_BACKEND:-direct}

step() { printf '\n== Step %s: %s\n' "$1" "$2"; }
ok() { printf '   ok: %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

# Words for a shell at the other end of ssh: each arrives as it is.
quoted() { for word in "$@"; do printf "'"; printf '%s' "$word" | sed "s/'/'\\\\''/g"; printf "' "; done; }

# A command on the KVM host, and one that reads a file of this machine; virsh there; a command in the VM.
# None of them reads what this script is read from, should that be a pipe.
on_host() { on_host_from /dev/null "$@"; }
on_host_from() {
    local from=$1
    shift
    if [ -z "$KVM_HOST" ]; then "$@" <"$from"; else ssh -F "$WORK/ssh_config" kvm-host "$(quoted "$@")" <"$from"; fi
}
on_virsh() { on_host virsh --quiet --connect "$LIBVIRT" "$@"; }
in_vm() { ssh -F "$WORK/ssh_config" guest "cd / && $(quoted "$@")" </dev/null; }

# A file to the KVM host: under another name first, proven there, then under its own. Nothing gives way to it.
send() {
    local sum
    on_host test ! -e "$2" || fail "$2 is there already on the KVM host; it is never overwritten"
    if [ -z "$KVM_HOST" ]; then
        cp --sparse=always -- "$1" "$2.arriving"
    else
        rsync --sparse --protect-args -e "ssh -F $WORK/ssh_config" -- "$1" "kvm-host:$2.arriving"
    fi
    sum=$(sha256sum <"$1")
    [ "$(on_host sha256sum -- "$2.arriving" | sed 's/^\\//' | cut -c 1-64)" = "${sum%% *}" ] ||
        fail "$2.arriving on the KVM host is not what was sent"
    on_host mv --no-clobber -T -- "$2.arriving" "$2"
    on_host test ! -e "$2.arriving" || fail "$2 appeared meanwhile on the KVM host; it is not overwritten"
    ok "$2 is on the KVM host, and its sha256 is the same there"
}

# Text inside an XML attribute.
xml_text() { printf '%s' "$1" | sed "s/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g; s/\"/\&quot;/g; s/'/\&apos;/g"; }

# libguestfs's own small VM, in which the disks are opened: their file systems never meet this machine's kernel.
appliance() { guestfish --remote="$GUESTFISH_PID" -- "$@"; }
GUESTFISH_PID=
CHANNEL=
trap 'printf "FAILED in line %s: %s\n" "$LINENO" "$BASH_COMMAND" >&2' ERR
end() {
    [ -z "$GUESTFISH_PID" ] || guestfish --remote="$GUESTFISH_PID" -- exit >/dev/null 2>&1 || true
    [ -z "$CHANNEL" ] || rm -rf -- "$CHANNEL"
}
trap end EXIT


step 1 'look: tools, what is read from, what must not be there yet'
[ "$(id -u)" = 0 ] || fail "this must run as root: files of every owner are read and written"
for tool in guestfish qemu-img rsync sha256sum ssh; do
    command -v "$tool" >/dev/null || fail "$tool is not installed on this machine"
done
case $WORK in /*) ;; *) fail "WORK must begin with /" ;; esac
case $WORK in *[!A-Za-z0-9._/-]*) fail "WORK has characters that other programs would read in their own way" ;; esac
[ -f "$IMAGE/manifest.json" ] || fail "there is no image in $IMAGE: is the store mounted there?"
[ -d "$NIGHT/data" ] || fail "there is no night in $NIGHT: is the store mounted there?"
mkdir -m 0700 -- "$WORK" || fail "WORK must not exist yet: what is in it is not overwritten"
[ -z "$KVM_HOST" ] || cat >>"$WORK/ssh_config" <<CONFIG
Host kvm-host
    HostName $KVM_HOST
    User $KVM_USER
    Port $KVM_PORT
    IdentityFile "${KVM_KEY//%/%%}"
    UserKnownHostsFile "${KNOWN_HOSTS//%/%%}"
    StrictHostKeyChecking ask
CONFIG
[ -z "$GUEST" ] || cat >>"$WORK/ssh_config" <<CONFIG
Host guest
    HostName $GUEST
    User $GUEST_USER
    Port $GUEST_PORT
    IdentityFile "${GUEST_KEY//%/%%}"
    UserKnownHostsFile "$WORK/known_hosts"
    HostKeyAlias guest
    StrictHostKeyChecking yes
CONFIG
cat >>"$WORK/ssh_config" <<CONFIG
Host *
    IdentitiesOnly yes
    ConnectTimeout 15
    ServerAliveInterval 10
    LogLevel ERROR
CONFIG
names=$(on_virsh list --all --name)
uuids=$(on_virsh list --all --uuid)
[ "$(grep -cxF -e "$VM" <<<"$names")" = 0 ] || fail "the KVM host has a VM of that name: rename it (virsh domrename)"
[ "$(grep -cxF -e "$UUID" <<<"$uuids")" = 0 ] || fail "the KVM host has a VM with the UUID $UUID: undefine that first"
declare -A needed # bytes by mount point on the KVM host: disks that lie on one file system share its room
room_for() { # FILE PATH: what a disk of the image takes, where it goes on the KVM host
    local free where
    on_host test ! -e "$2" || fail "$2 is there already on the KVM host: move it away"
    read -r free where < <(on_host df -B1 --output=avail,target -- "$(dirname -- "$2")" | tail -n 1)
    needed[$where]=$((${needed[$where]:-0} + $(stat -c %b -- "$1") * 512))
    [ "$free" -gt "${needed[$where]}" ] ||
        fail "no room for $2 on the KVM host: $free bytes are free on $where, its disks need ${needed[$where]}"
}
room_to_work() { # BYTES: for the copies; on the KVM host itself beside the disks that go there
    local free where need=$1
    read -r free where < <(df -B1 --output=avail,target -- "$WORK" | tail -n 1)
    [ -n "$KVM_HOST" ] || need=$((need + ${needed[$where]:-0}))
    [ "$free" -gt "$need" ] || fail "no room in $WORK: $free bytes are free on $where, $need are needed there"
}
room_for "$IMAGE"/vda.raw "$DISK_1"
room_to_work $((($(stat -c %b -- "$IMAGE"/vda.raw)) * 512 + 0))
ok "all is there, and nothing is in the way"


step 2 'prove the image'
cat >"$WORK/image.sums" <<'SUMS'
0000000000000000000000000000000000000000000000000000000000000000  vda.raw.chunks
SUMS
(cd -- "$IMAGE" && sha256sum --check --strict --quiet "$WORK/image.sums") || fail "the image is damaged"
ok "1 files of the image have their sha256"
prove_chunks() { # FILE LISTING SIZE: sha256 of each 4 MiB that is not all zero
    local sum number found
    [ "$(stat -c %s -- "$1")" = "$3" ] || fail "$1 has not the size $3"
    while read -r sum number; do
        found=$(dd if="$1" bs=4M skip="$number" count=1 status=none | sha256sum)
        [ "${found%% *}" = "$sum" ] || fail "$1 is damaged: its chunk $number of 4 MiB has another sha256"
    done <"$2"
    ok "$1: every chunk has its sha256"
}
prove_chunks "$IMAGE"/vda.raw "$IMAGE"/vda.raw.chunks 1073741824


step 3 'prove the night'
[ "$(sha256sum <"$NIGHT/SHA256SUMS")" = "0000000000000000000000000000000000000000000000000000000000000000  -" ] || fail "$NIGHT/SHA256SUMS is not the one of that night"
[ "$(sha256sum <"$NIGHT/facts.json")" = "0000000000000000000000000000000000000000000000000000000000000000  -" ] || fail "$NIGHT/facts.json is not the one of that night"
[ ! -s "$NIGHT/SHA256SUMS" ] ||
    (cd -- "$NIGHT/data" && sha256sum --check --strict --quiet ../SHA256SUMS) || fail "the night is damaged"
ok "every file of the night has its sha256"


step 4 'copy the disks'
cp --reflink=auto --sparse=always -- "$IMAGE"/vda.raw "$WORK/disk-1.raw"
qemu-img compare -q -f raw -F raw -- "$IMAGE"/vda.raw "$WORK/disk-1.raw" ||
    fail "disk 1 is not the same as in the image"
ok "disk 1 is the same as in the image, as raw"


step 5 'put the files of the night into the disks'
protect_nested() { # DEVICE SUBVOLUME PLACE: no night has what is in subvolumes that nobody mounts
    local path place escaped
    appliance btrfs-subvolume-list "$1" | sed -n 's/^ *btrfssubvolume_path: //p' >"$WORK/subvolumes"
    while IFS= read -r path; do
        case $path in "$2"*) ;; *) continue ;; esac
        place=${3%/}/${path#"$2"}
        if grep -qxF -e "$place" <<<"$PLACES"; then continue; fi
        escaped=$(sed 's/[[*?\\]/\\&/g' <<<"$place")
        case $place in *[[*?]*) place=$escaped ;; esac # only beside a wildcard a backslash escapes
        printf '%s\0' "P $place" "P $escaped/**" >>"$WORK/tree-rules"
    done <"$WORK/subvolumes"
}
mount_at() { # UUID TYPE OPTIONS SUBVOLUME PLACE: a file system of the disks, by its UUID, where the VM has it
    local device
    device=$(appliance findfs-uuid "$1") || fail "the disks hold no file system $1 ($5)"
    [ "$(appliance vfs-type "$device")" = "$2" ] || fail "$device ($5) is no $2"
    if [ "$5" != / ]; then
        appliance mkdir-p "$5"
        [ "$(appliance realpath "$5")" = "$5" ] || fail "$5 leads elsewhere in the disks"
    fi
    appliance mount-options "$3" "$device" "$5"
    [ "$2" != btrfs ] || protect_nested "$device" "$4" "$5"
    ok "$5 is $device"
}
holds_files() { # PLACE: a night that was taken while it was not mounted must not empty it
    [ ! -e "$NIGHT/data$1" ] || [ -n "$(ls -A --ignore=lost+found -- "$NIGHT/data$1")" ] ||
        [ -z "$(appliance ls "$1" | grep -vx lost+found)" ] ||
        fail "the night has nothing of $1, and the disks do"
}
PLACES='/
/var'
# The appliance's network ends in an rsync daemon that QEMU starts for it: there is no port and no way out.
CHANNEL=$(mktemp -d /tmp/recover-XXXXXXXX)
ln -s -- "$(realpath -- "$NIGHT/data")" "$CHANNEL/source"
cat >"$CHANNEL/rsyncd.conf" <<CONFIG
use chroot = yes
uid = 0
gid = 0
numeric ids = yes
read only = yes
munge symlinks = no
reverse lookup = no
fake super = no
log file = $CHANNEL/log
[night]
path = $CHANNEL/source
CONFIG
network=user,id=night,restrict=on,net=169.254.0.0/16
network+=",guestfwd=tcp:169.254.2.100:873-cmd:rsync --daemon --config=$CHANNEL/rsyncd.conf"
# rsync's rules: what is neither deleted (P) nor touched at all (-).
printf '%s\0' \
    '- /var/lib/postgresql/*/*/*' \
    '- *.tmp' \
    '- /lost+found' \
    '- /var/lost+found' \
    '- /boot/grub/i386-pc/' \
    '- /boot/grub2/i386-pc/' \
    'P /var' \
    'P /lost+found' \
    'P /var/lost+found' \
    'P /.autorelabel' \
    >"$WORK/tree-rules"
cat >"$WORK/update" <<'UPDATE'
# Runs in the appliance, where the disks' file systems lie below /sysroot.
card=$(ls /sys/class/net | grep -v '^lo$')
ip link set "$card" up && ip addr add 169.254.2.10/16 dev "$card" || exit
cd /tmp
from=rsync://169.254.2.100/night
again() { # WHAT OPTION... : bring the night's files of some file systems, then ask whether anything still differs
    what=$1
    shift
    rsync "$@" --from0 --filter=". /tmp/$what-rules" "$from/" /sysroot/ >log 2>&1
    echo "status $? of rsync: $what"
    tail -n 5 log
    rsync "$@" --from0 --filter=". /tmp/$what-rules" --dry-run --itemize-changes "$from/" /sysroot/ >log 2>&1
    echo "still different, $what: $(grep -vc '^skipping non-regular file' log)"
    head -n 5 log
}
again tree -aHAXS --numeric-ids --whole-file --delete-before --modify-window=-1
UPDATE
eval "$(guestfish --listen --rw --format=raw -a "$WORK/disk-1.raw")"
appliance config -netdev "$network"
appliance config -device virtio-net-pci,netdev=night
appliance run
appliance debug sh "command -v rsync" >/dev/null || fail "libguestfs's appliance has no rsync: install libguestfs-rsync"
mount_at 4f92d847-ddfa-4629-b144-b4eb21c05b95 ext4 noatime '' /
mount_at a5d0f1d2-0f9c-4a2e-9b3f-2d7e5f0a1b2c xfs noatime '' /var
holds_files /
holds_files /var
for rules in "$WORK"/*-rules; do appliance debug-upload "$rules" "/tmp/${rules##*/}" 0600; done
appliance debug-upload "$WORK/update" /tmp/update 0700
said=$(appliance debug sh "sh /tmp/update")
printf '%s\n' "$said"
[ "$(grep -c '^status 0 of rsync: ' <<<"$said")" = 1 ] || fail "rsync into the disks did not succeed; see above"
if [ "$(grep -c '^still different, .*: 0$' <<<"$said")" = 1 ]; then
    ok "a second comparison of the disks with the night finds no difference"
else
    printf 'LOOK: some files in the disks still differ from the night, as listed above; going on\n' >&2
fi
appliance umount-all
appliance shutdown
appliance exit
GUESTFISH_PID=
ok "the disks hold the files of the night"


step 6 'bring the disks to the KVM host'
send "$WORK/disk-1.raw" "$DISK_1"


step 7 'put back what makes the VM besides its disks'
ok "what the VM needs besides its disks is on the KVM host"


step 8 'define the VM and start it'
# Only what is known to be safe is left of the old definition; @NAMES@ stand for what you decided above.
definition=$(cat <<'DEFINITION'
<domain type="qemu">
  <name>web1</name>
  <uuid>90a82260-1496-49c7-872c-574b9ce0acc3</uuid>
  <memory unit="MiB">1024</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch="x86_64" machine="q35">hvm</type>
  </os>
  <features>
    <acpi />
  </features>
  <devices>
    <disk type="file" device="disk">
      <driver type="raw" discard="unmap" name="qemu" />
      <source file="@DISK_1@" />
      <target dev="vda" bus="virtio" />
    </disk>
    <interface type="user">
      <backend type="passt" />
      <mac address="52:54:00:65:9a:7f" />
      <portForward proto="tcp" address="127.0.0.1">
        <range start="2222" to="22" />
      </portForward>
      <model type="virtio" />
    </interface>
    <channel type="unix">
      <target type="virtio" name="org.qemu.guest_agent.0" />
    </channel>
  </devices>
</domain>
DEFINITION
)
definition=${definition//@DISK_1@/"$(xml_text "$DISK_1")"}
printf '%s\n' "$definition" >"$WORK/domain.xml"
on_host_from "$WORK/domain.xml" virsh --quiet --connect "$LIBVIRT" define /dev/stdin
[ "$(on_virsh domname "$UUID")" = "$VM" ] || fail "libvirt does not know the VM by its UUID"
ok "the VM is defined; its definition is $WORK/domain.xml"
on_virsh start "$UUID"
[ "$(on_virsh domstate "$UUID")" = running ] || fail "it does not run: look at its log in /var/log/libvirt/qemu"
ok "it runs"


step 9 'wait until the VM answers'
# It is known by its own host keys, which came back with its files.
for key in "$NIGHT"/data/etc/ssh/ssh_host_*_key.pub; do
    if [ -f "$key" ] && [ ! -L "$key" ]; then
        read -r kind public _ <"$key" || true
        printf 'guest %s %s\n' "$kind" "$public"
    fi
done >"$WORK/known_hosts"
[ -s "$WORK/known_hosts" ] || fail "the night has no ssh host key: go on by hand, at its console (virsh console)"
within() { # SECONDS COMMAND...: until it succeeds
    local ends=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>"$WORK/said"; do
        [ "$SECONDS" -lt "$ends" ] || { cat "$WORK/said" >&2; return 1; }
        sleep 2
    done
}
within 600 in_vm true || fail "no login after 600 s: look at its console (virsh console, virsh domdisplay)"
ok "it answers over ssh, with its own host key"


step 10 'load the databases'\'' dumps'
SCRIPT_1=$(cat <<'SCRIPT'
login=$1
ready
SCRIPT
)
SCRIPT_2=$(cat <<'SCRIPT'
login=$1
load "$2" 'x'
SCRIPT
)
# postgresql shop
found=$(in_vm sha256sum -- /var/backups/gbs/postgresql/shop.dump | sed 's/^\\//')
[ "${found%% *}" = 0000000000000000000000000000000000000000000000000000000000000000 ] || fail "the dump is not the one that was made"
within 300 in_vm sh -euc "$SCRIPT_1" gbs '' || fail "its server takes no connections"
in_vm sh -euc "$SCRIPT_2" gbs '' shop /var/backups/gbs/shop.dump >/dev/null || fail 'postgresql shop did not load'
ok 'postgresql shop is loaded'


step 11 probe
within 60 in_vm systemctl is-active nginx || fail 'probe: systemctl is-active nginx'
ok 'probe: systemctl is-active nginx'
within 60 in_vm bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1"' probe 443 || fail 'probe: tcp port 443'
ok 'probe: tcp port 443'


printf '\n== Done. %s runs. What is left to you:\n' "$VM"
printf '   look at it; then remove %s, which holds copies of its disks\n' "$WORK"
