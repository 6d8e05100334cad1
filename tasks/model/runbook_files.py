"""The step of a runbook that puts the night's files into the copies of the disks, in libguestfs's appliance."""

from collections.abc import Iterator
from posixpath import join

from tasks.model.facts_mounts import FileSystem
from tasks.model.runbook import Runbook
from tasks.model.runbook_disks import working
from tasks.model.shell_text import document, word, words

BELONGS_TO_DISK = ("/boot/grub/i386-pc/", "/boot/grub2/i386-pc/")
"""GRUB's modules fit the core image in the boot sector of the very disk, which is not a file."""
_FAT = frozenset({"vfat", "msdos", "exfat"})
"""File systems without owners, modes and links, and with times of two seconds."""
_TREE = "-aHAXS --numeric-ids --whole-file --delete-before --modify-window=-1 --from0 --filter='. /tmp/rules'"
_FAT_TREE = "-rtO --whole-file --delete-before --modify-window=2 --exclude=/lost+found"
_MOUNT = r"""
mount_at() { # UUID TYPE OPTIONS PLACE: a file system of the disks, by its UUID, where the VM has it
    local device
    device=$(appliance findfs-uuid "$1") || fail "the disks hold no file system $1 ($4)"
    [ "$(appliance vfs-type "$device")" = "$2" ] || fail "$device ($4) is no $2"
    if [ "$4" != / ]; then
        appliance mkdir-p "$4"
        [ "$(appliance realpath "$4")" = "$4" ] || fail "$4 leads elsewhere in the disks"
    fi
    appliance mount-options "$3" "$device" "$4"
    ok "$4 is $device"
}
holds_files() { # PLACE: a night that was taken while it was not mounted must not empty it
    [ ! -e "$NIGHT/data$1" ] || [ -n "$(ls -A --ignore=lost+found -- "$NIGHT/data$1")" ] ||
        [ -z "$(appliance ls "$1" | grep -vx lost+found)" ] ||
        fail "the night has nothing of $1, and the disks do"
}
"""
_CHANNEL = r"""
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
fake super = {fake_super}
log file = $CHANNEL/log
[night]
path = $CHANNEL/source
CONFIG
network=user,id=night,restrict=on,net=169.254.0.0/16
network+=",guestfwd=tcp:169.254.2.100:873-cmd:rsync --daemon --config=$CHANNEL/rsyncd.conf"
"""
_UPDATE = r"""# Runs in the appliance, where the disks' file systems lie below /sysroot.
card=$(ls /sys/class/net | grep -v '^lo$')
ip link set "$card" up && ip addr add 169.254.2.10/16 dev "$card" || exit
cd /tmp
from=rsync://169.254.2.100/night
again() { # PREFIX OPTION... : bring one tree, then ask whether anything still differs
    below=$1
    shift
    rsync "$@" "$from$below/" "/sysroot$below/" >log 2>&1
    echo "status $? of rsync to $below/"
    tail -n 5 log
    rsync "$@" --dry-run --itemize-changes "$from$below/" "/sysroot$below/" >log 2>&1
    echo "still different in $below/: $(grep -c . log)"
    head -n 5 log
}
"""
_RUN = r"""
appliance config -netdev "$network"
appliance config -device virtio-net-pci,netdev=night
appliance run
appliance debug sh "command -v rsync" >/dev/null || fail "libguestfs's appliance has no rsync: install libguestfs-rsync"
"""
_PUT = r"""
appliance debug-upload "$WORK/rules" /tmp/rules 0600
appliance debug-upload "$WORK/update" /tmp/update 0700
said=$(appliance debug sh "sh /tmp/update")
printf '%s\n' "$said"
[ "$(grep -c '^status 0 of rsync' <<<"$said")" = {count} ] || fail "rsync into the disks did not succeed; see above"
if [ "$(grep -c '^still different .*: 0$' <<<"$said")" = {count} ]; then
    ok "a second comparison of the disks with the night finds no difference"
else
    printf 'LOOK: some files in the disks still differ from the night, as listed above; going on\n' >&2
fi
appliance umount-all
appliance shutdown
appliance exit
GUESTFISH_PID=
"""


def update(runbook: Runbook) -> str:
    """The night's files in the copies: all that the night has, and nothing that it has not."""
    facts, why_not = runbook.facts, runbook.why_no_files
    if facts is None or why_not is not None:
        return f"printf '   not done: %s\\n' {word(why_not or '')}"
    pulled = set(runbook.night.paths)
    # By name, so that what is mounted below another one comes after it.
    systems = sorted((row for row in facts.file_systems if row.mountpoint in pulled), key=lambda row: row.mountpoint)
    fat = [row.mountpoint for row in systems if row.fstype in _FAT]
    drives = " ".join(
        f"--format={disk.format} -a {working(number, disk)}" for number, (disk, _) in enumerate(runbook.disks, 1)
    )
    tree = _UPDATE + "\n".join([f"again '' {_TREE}", *(f"again {word(place)} {_FAT_TREE}" for place in fat)]) + "\n"
    rules = " \\\n    ".join(word(rule) for rule in _rules(runbook, systems, fat))
    kept = set(runbook.night.excluded)
    return "\n".join(
        [
            _MOUNT.strip(),
            _CHANNEL.replace("{fake_super}", "yes" if runbook.night.fake_super else "no").strip(),
            "# rsync's rules: what is neither deleted (P) nor touched at all (-).",
            f"printf '%s\\0' \\\n    {rules} \\\n    >\"$WORK/rules\"",
            f'cat >"$WORK/update" {document("UPDATE", tree)}',
            f'eval "$(guestfish --listen --rw {drives})"',
            _RUN.strip(),
            *(f"mount_at {words([row.uuid or '', row.fstype, _options(row), row.mountpoint])}" for row in systems),
            *(f"holds_files {word(row.mountpoint)}" for row in systems if join(row.mountpoint, "*") not in kept),
            _PUT.replace("{count}", str(1 + len(fat))).strip(),
            *_checks(runbook),
        ]
    )


def _options(row: FileSystem) -> str:
    """Options of mount(8); a subvolume of btrfs stands in its source, as findmnt shows it."""
    _, bracket, subvolume = row.source.partition("[")
    return f"noatime,subvol={subvolume.removesuffix(']')}" if bracket and row.fstype == "btrfs" else "noatime"


def _rules(runbook: Runbook, systems: list[FileSystem], fat: list[str]) -> Iterator[str]:
    places = [row.mountpoint.rstrip("/") for row in systems if row.mountpoint not in fat]
    yield from (f"P {_literal(place)}" for place in places if place)
    yield from (f"- {_literal(place)}/lost+found" for place in places)
    # Not even the folder's own time, which FAT does not keep; what is in it is brought apart.
    yield from (f"- {_literal(place)}" for place in fat)
    yield from (f"- {pattern}" for pattern in (*runbook.night.excluded, *BELONGS_TO_DISK) if pattern.startswith("/"))


def _literal(path: str) -> str:
    """The pattern that matches this path only: a backslash escapes in a pattern with wildcards, and only there."""
    if not any(char in path for char in "[*?"):
        return path
    return "".join(f"\\{char}" if char in "[*?\\" else char for char in path)


def _checks(runbook: Runbook) -> Iterator[str]:
    for number, (disk, _) in enumerate(runbook.disks, 1):
        if disk.format != "raw":
            yield f'qemu-img check -q -f {disk.format} {working(number, disk)} || fail "disk {number} is damaged"'
    yield 'ok "the disks hold the files of the night"'
