"""The parts of a runbook that are the same for every VM."""

DECISIONS = r"""

# ---------------------------------------------------------------- What you decide. Look at each line before you begin.

# A folder that is made here, for the disks while they are worked on. It must not exist. Letters, digits, . _ - / only.
WORK={WORK}

# Where the stores are mounted on this machine, the image and the night.
{stores}
{where}

# The KVM host that the VM comes to. Empty: this very machine.
KVM_HOST={KVM_HOST}
KVM_USER={KVM_USER}
KVM_PORT={KVM_PORT}
KVM_KEY={KVM_KEY}
# Its host key must be in here (known_hosts(5)); without the file, ssh asks you.
KNOWN_HOSTS={KNOWN_HOSTS}
LIBVIRT={LIBVIRT}

# Where each disk goes on the KVM host.
{places}
{nvram}
# What its network cards are connected to there, in the definition's order.
{networks}

# How the VM is reached when it runs. The key is one that it lets in; the host keys are known from its own files.
GUEST={GUEST}
GUEST_USER={GUEST_USER}
GUEST_PORT={GUEST_PORT}
GUEST_KEY={GUEST_KEY}

# Not yours to decide: the VM as libvirt knows it.
{fixed}

# ------------------------------------------------------------------------------------------------------------- Helpers
"""

HELPERS = r"""
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
"""

ENDING = r"""

printf '\n== Done. %s runs. What is left to you:\n' "$VM"
printf '   look at it; then remove %s, which holds copies of its disks\n' "$WORK"
"""
