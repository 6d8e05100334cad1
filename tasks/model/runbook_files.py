"""The step of a runbook that puts the night's files into the copies of the disks, in libguestfs's appliance."""

from collections.abc import Iterator
from posixpath import join

from tasks.model.image_update import (
    COARSE_OPTIONS,
    TREE_OPTIONS,
    MountedBy,
    coarse_rules,
    mount_options,
    tree_rules,
    update_plan,
)
from tasks.model.runbook import Runbook
from tasks.model.runbook_disks import working
from tasks.model.shell_text import document, word, words

_OPTIONS = {"tree": TREE_OPTIONS, "coarse": COARSE_OPTIONS}
_MOUNT = r"""
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
"""
_RUN = r"""
appliance config -netdev "$network"
appliance config -device virtio-net-pci,netdev=night
appliance run
appliance debug sh "command -v rsync" >/dev/null || fail "libguestfs's appliance has no rsync: install libguestfs-rsync"
"""
_PUT = r"""
for rules in "$WORK"/*-rules; do appliance debug-upload "$rules" "/tmp/${rules##*/}" 0600; done
appliance debug-upload "$WORK/update" /tmp/update 0700
said=$(appliance debug sh "sh /tmp/update")
printf '%s\n' "$said"
[ "$(grep -c '^status 0 of rsync: ' <<<"$said")" = {count} ] || fail "rsync into the disks did not succeed; see above"
if [ "$(grep -c '^still different, .*: 0$' <<<"$said")" = {count} ]; then
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
    """The night's files in the copies: all that the night has, and nothing that it has not; by an update's rules."""
    facts, why_not = runbook.facts, runbook.why_no_files
    if facts is None or why_not is not None:
        return f"printf '   not done: %s\\n' {word(why_not or '')}"
    plan = update_plan(facts, runbook.night)
    rules = {"tree": tree_rules(plan.mounts, plan.keep, ()), "coarse": coarse_rules(plan.mounts, plan.keep)}
    passes = [f"again {name} {_OPTIONS[name]}" for name, lines in rules.items() if lines]
    drives = " ".join(
        f"--format={disk.format} -a {working(number, disk)}" for number, (disk, _) in enumerate(runbook.disks, 1)
    )
    places = [mount.mountpoint for mount in plan.mounts]
    return "\n".join(
        [
            _MOUNT.strip(),
            f"PLACES={word(chr(10).join(places))}",
            _CHANNEL.replace("{fake_super}", "yes" if runbook.night.fake_super else "no").strip(),
            "# rsync's rules: what is neither deleted (P) nor touched at all (-).",
            *(_written(name, lines) for name, lines in rules.items() if lines),
            f'cat >"$WORK/update" {document("UPDATE", _UPDATE + chr(10).join([*passes, ""]))}',
            f'eval "$(guestfish --listen --rw {drives})"',
            _RUN.strip(),
            *(f"mount_at {words(_mounted(mount))}" for mount in plan.mounts),
            *(f"holds_files {word(place)}" for place in places if join(place, "*") not in plan.keep),
            _PUT.replace("{count}", str(len(passes))).strip(),
            *_checks(runbook),
        ]
    )


def warnings(runbook: Runbook) -> tuple[str, ...]:
    """What of the disks it leaves as the image has it."""
    if runbook.facts is None or runbook.why_no_files is not None:
        return ()
    return update_plan(runbook.facts, runbook.night).warnings


def _written(name: str, rules: list[str]) -> str:
    listed = " \\\n    ".join(word(rule) for rule in rules)
    return f"printf '%s\\0' \\\n    {listed} \\\n    >\"$WORK/{name}-rules\""


def _mounted(mount: MountedBy) -> list[str]:
    inside = mount.subvolume.strip("/")
    return [mount.uuid, mount.fstype, mount_options(mount), f"{inside}/" if inside else "", mount.mountpoint]


def _checks(runbook: Runbook) -> Iterator[str]:
    for number, (disk, _) in enumerate(runbook.disks, 1):
        if disk.format != "raw":
            yield f'qemu-img check -q -f {disk.format} {working(number, disk)} || fail "disk {number} is damaged"'
    yield 'ok "the disks hold the files of the night"'
