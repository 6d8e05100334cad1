"""Steps of a runbook on the machine that sees the stores: look, prove, copy the disks, put the night's files in."""

from collections.abc import Iterator
from posixpath import join

from tasks.model.facts_mounts import FileSystem
from tasks.model.manifest import DiskRecord, FileRecord
from tasks.model.runbook import TARGET, Bringing, Runbook
from tasks.model.runbook_text import UPDATE
from tasks.model.shell_text import document, word, words

BELONGS_TO_DISK = ("/boot/grub/i386-pc/", "/boot/grub2/i386-pc/")
"""GRUB's modules fit the core image in the boot sector of the very disk, which is not a file."""
_FAT = frozenset({"vfat", "msdos", "exfat"})
"""File systems without owners, modes and links, and with times of two seconds."""
_TREE = "-aHAXS --numeric-ids --whole-file --delete-before --modify-window=-1 --from0 --filter='. /tmp/rules'"
_FAT_TREE = "-rt --whole-file --delete-before --modify-window=2 --exclude=/lost+found"
_LOOK = r"""
[ "$(id -u)" = 0 ] || fail "this must run as root: files of every owner are read and written"
for tool in guestfish qemu-img rsync sha256sum ssh; do
    command -v "$tool" >/dev/null || fail "$tool is not installed on this machine"
done
case $WORK in /*) ;; *) fail "WORK must begin with /" ;; esac
case $WORK in *[!A-Za-z0-9._/-]*) fail "WORK has characters that other programs would read in their own way" ;; esac
[ -f "$IMAGE/manifest.json" ] || fail "there is no image in $IMAGE: is the store mounted there?"
"""
_WORK = r"""
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
room_for() { # FILE PATH: what a disk of the image takes, where it goes on the KVM host
    local free need
    on_host test ! -e "$2" || fail "$2 is there already on the KVM host: move it away"
    free=$(on_host df -B1 --output=avail -- "$(dirname -- "$2")" | tail -n 1)
    need=$(($(stat -c %b -- "$1") * 512))
    [ "$free" -gt "$need" ] || fail "no room for $2 on the KVM host: $free bytes are free, it needs $need"
}
"""
_PROVE_CHUNKS = r"""
prove_chunks() { # FILE LISTING SIZE: sha256 of each 4 MiB that is not all zero
    local sum number found
    [ "$(stat -c %s -- "$1")" = "$3" ] || fail "$1 has not the size $3"
    while read -r sum number; do
        found=$(dd if="$1" bs=4M skip="$number" count=1 status=none | sha256sum)
        [ "${found%% *}" = "$sum" ] || fail "$1 is damaged: its chunk $number of 4 MiB has another sha256"
    done <"$2"
    ok "$1: every chunk has its sha256"
}
"""
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


def look(runbook: Runbook) -> str:
    """What must be there, what must not, and room."""
    sources = [_path(f"$IMAGE/{disk.file}") for disk in runbook.image.disks]
    night = '[ -d "$NIGHT/data" ] || fail "there is no night in $NIGHT: is the store mounted there?"'
    total = " + ".join(f"$(stat -c %b -- {source})" for source in sources)
    extra = runbook.night.size_bytes if runbook.bringing else runbook.night.size_bytes // 4
    return "\n".join(
        [
            _LOOK.strip(),
            *([night] if runbook.night_place is not None else []),
            _WORK.strip(),
            *(f'room_for {source} "$DISK_{number}"' for number, source in enumerate(sources, 1)),
            'free=$(df -B1 --output=avail -- "$WORK" | tail -n 1)',
            f'[ "$free" -gt "$((({total}) * 512 + {extra}))" ] || fail "no room in $WORK: $free bytes are free"',
            'ok "all is there, and nothing is in the way"',
        ]
    )


def _path(text: str) -> str:
    """`$VARIABLE/rest` with the rest as data."""
    variable, _, rest = text.partition("/")
    return f'"{variable}"/{word(rest)}'


def prove_image(runbook: Runbook) -> str:
    """sha256 of every file of the image."""
    files = runbook.image.files
    sums = "".join(_sum(file) for file in files if file.sha256)
    lines = [
        f'cat >"$WORK/image.sums" {document("SUMS", sums)}',
        '(cd -- "$IMAGE" && sha256sum --check --strict --quiet "$WORK/image.sums") || fail "the image is damaged"',
        f'ok "{sums.count(chr(10))} files of the image have their sha256"',
    ]
    chunked = [file for file in files if file.chunks]
    if chunked:
        lines.append(_PROVE_CHUNKS.strip())
    for file in chunked:
        listing = _path(f"$IMAGE/{file.chunks}")
        lines.append(f"prove_chunks {_path(f'$IMAGE/{file.path}')} {listing} {file.size_bytes}")
    return "\n".join(lines)


def _sum(file: FileRecord) -> str:
    escaped = file.path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{chr(92) if escaped != file.path else ''}{file.sha256}  {escaped}\n"


def prove_night(runbook: Runbook) -> str:
    """The night where the script can read it, and sha256 of every file of it."""
    brought = list(_bring(runbook.bringing)) if runbook.bringing else []
    night = runbook.night
    proofs = [
        f'[ "$(sha256sum <"$NIGHT/{name}")" = "{sha256}  -" ] || fail "$NIGHT/{name} is not the one of that night"'
        for name, sha256 in (("SHA256SUMS", night.listing_sha256), ("facts.json", night.facts_sha256))
    ]
    check = '(cd -- "$NIGHT/data" && sha256sum --check --strict --quiet ../SHA256SUMS) || fail "the night is damaged"'
    empty = '[ ! -s "$NIGHT/SHA256SUMS" ] ||\n    '
    return "\n".join([*brought, *proofs, empty + check, 'ok "every file of the night has its sha256"'])


def _bring(bringing: Bringing) -> Iterator[str]:
    """The engine's own command, in a shell of its own so that its secrets stay there."""
    yield f"# {bringing.called} brings the night to $NIGHT; what opens it stands in files that only root reads."
    yield "("
    if bringing.environment_file is not None:
        yield "    while IFS= read -r line; do\n        case $line in '#'* | '') ;; *) export \"${line?}\" ;; esac"
        yield f"    done <{word(bringing.environment_file)}"
    yield from (f"    export {name}={word(value)}" for name, value in bringing.variables)
    argv = " ".join(_with_night(text) for text in bringing.argv)
    yield f'    mkdir -p -- "$NIGHT"\n    {argv}\n) || fail "the night could not be brought"'


def _with_night(text: str) -> str:
    """One word of a command, with the night's folder where it is named."""
    return '"$NIGHT"'.join(word(part) if part else "" for part in text.split(TARGET)) or "''"


def copy(runbook: Runbook) -> str:
    """A copy of each disk in the format that the VM had; the image is only read."""
    lines = []
    for number, (kept, (disk, _)) in enumerate(zip(runbook.image.disks, runbook.disks, strict=True), 1):
        source, target = _path(f"$IMAGE/{kept.file}"), _working(number, disk)
        if kept.format == disk.format:
            lines.append(f"cp --reflink=auto --sparse=always -- {source} {target}")
        else:
            options = ["-o", ",".join(kept.options)] if kept.options else []
            lines.append(f"qemu-img convert -f {kept.format} -O {words([disk.format, *options])} -- {source} {target}")
        lines += [
            f"qemu-img compare -q -f {kept.format} -F {disk.format} -- {source} {target} ||",
            f'    fail "disk {number} is not the same as in the image"',
            f'ok "disk {number} is the same as in the image, as {disk.format}"',
        ]
    return "\n".join(lines)


def _working(number: int, disk: DiskRecord) -> str:
    return f'"$WORK/disk-{number}.{disk.format}"'


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
        f"--format={disk.format} -a {_working(number, disk)}" for number, (disk, _) in enumerate(runbook.disks, 1)
    )
    tree = UPDATE + "\n".join([f"again '' {_TREE}", *(f"again {word(place)} {_FAT_TREE}" for place in fat)]) + "\n"
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
    places = [row.mountpoint.rstrip("/") for row in systems]
    yield from (f"P {_literal(place)}" for place in places if place)
    yield from (f"- {_literal(place)}/lost+found" for place in places)
    yield from (f"- {_escaped(place)}/*" for place in fat)
    yield from (f"- {pattern}" for pattern in (*runbook.night.excluded, *BELONGS_TO_DISK) if pattern.startswith("/"))


def _literal(path: str) -> str:
    """The pattern that matches this path only: a backslash escapes in a pattern with wildcards, and only there."""
    return _escaped(path) if any(char in path for char in "[*?") else path


def _escaped(path: str) -> str:
    return "".join(f"\\{char}" if char in "[*?\\" else char for char in path)


def _checks(runbook: Runbook) -> Iterator[str]:
    for number, (disk, _) in enumerate(runbook.disks, 1):
        if disk.format != "raw":
            yield f'qemu-img check -q -f {disk.format} {_working(number, disk)} || fail "disk {number} is damaged"'
    yield 'ok "the disks hold the files of the night"'
