"""Steps of a runbook on the machine that sees the stores: look, prove image and night, copy the disks."""

from collections.abc import Iterator

from tasks.model.manifest import DiskRecord, FileRecord
from tasks.model.runbook import TARGET, Bringing, Runbook
from tasks.model.shell_text import document, word, words

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
"""
_ROOM = r"""
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


def look(runbook: Runbook) -> str:
    """What must be there, what must not, and room."""
    night = '[ -d "$NIGHT/data" ] || fail "there is no night in $NIGHT: is the store mounted there?"'
    return "\n".join(
        [
            _LOOK.strip(),
            *([night] if runbook.night_place is not None else []),
            _WORK.strip(),
            room(runbook),
            'ok "all is there, and nothing is in the way"',
        ]
    )


def room(runbook: Runbook) -> str:
    """Room for the disks on the KVM host and for their copies here, by file system."""
    sources = [_path(f"$IMAGE/{disk.file}") for disk in runbook.image.disks]
    total = " + ".join(f"$(stat -c %b -- {source})" for source in sources)
    extra = runbook.night.size_bytes if runbook.bringing else runbook.night.size_bytes // 4
    return "\n".join(
        [
            _ROOM.strip(),
            *(f'room_for {source} "$DISK_{number}"' for number, source in enumerate(sources, 1)),
            f"room_to_work $((({total}) * 512 + {extra}))",
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
        source, target = _path(f"$IMAGE/{kept.file}"), working(number, disk)
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


def working(number: int, disk: DiskRecord) -> str:
    """The copy of a disk, as the script names it."""
    return f'"$WORK/disk-{number}.{disk.format}"'
