"""Read-only snapshots of a client's file systems by LVM and btrfs, mounted as one tree that rsync pulls from.

Every command has a deadline on the client. Names reach it as words of an argv, beside constant scripts. What a
run left is removed by whatever runs next: `clear` takes away all that is provably ours, whichever run made it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

from tasks.drivers.host_shell import run_each
from tasks.drivers.ssh import Output, Shell
from tasks.errors import CommandFailed, LeftBehind, SourceRefused
from tasks.model.client_snapshot import (
    BTRFS_FOLDER,
    LVM_MOUNT_OPTIONS,
    ROOT,
    TAG,
    Part,
    SnapshotTree,
    Survey,
    WantedSnapshot,
    btrfs_devices,
    local_places,
    lost,
    our_mounts,
    our_subvolumes,
    our_volumes,
    plan,
    shadowed,
    tree_of,
    tree_path,
)
from tasks.model.client_volumes import LVS, VGS, parse_groups, parse_volumes
from tasks.model.mountinfo import parse_mounts
from tasks.model.names import new_id

DEADLINE_S = 120
"""A log to replay or a busy volume group may take its time."""
GRACE_S = 30
_NOT_THERE, _TIMED_OUT = 127, 124
_AT_ONCE = 300
"""So many paths fit into the words of one command."""

_LVM = ("--reportformat", "json", "--units", "b", "--nosuffix", "-o")
# Flags: nothing on these mounts is ever executed or opened as a device. rsync reads what a node is, and needs no more.
_SAFE = "nodev,nosuid,noexec"
_TAKE_LVM = 'lvcreate --snapshot --name "$1" --addtag "$2" --extents "$3" "$4" >/dev/null && date +%s.%N'
_TOP = f"""
device=$1 top=$2 folder=$2/{BTRFS_FOLDER}
mkdir -p -m 0700 -- {ROOT} "$top"
mount -t btrfs -o subvolid=5,{_SAFE} -- "$device" "$top"
trap 'umount -- "$top"; rmdir -- "$top"' EXIT
"""
_TAKE_BTRFS = f"""set -eu
{_TOP}
mkdir -p -m 0700 -- "$folder"
btrfs subvolume snapshot -r "$3" "$folder/$4" >/dev/null
date +%s.%N
"""
_DELETE_BTRFS = f"""set -eu
{_TOP}
shift 2
for name; do btrfs subvolume delete "$folder/$name" >/dev/null; done
rmdir --ignore-fail-on-non-empty -- "$folder"
"""
# The place must be in the tree, wherever links in it lead. A mount is private before anything is mounted below it: the
# root file system, bound, is a peer of the real one, and what is mounted in it would cover the client's own.
_MOUNT = f"""set -u
place=$1 own=$2
shift 2
mkdir -p -m 0700 -- {ROOT} && mkdir -p -- "$place" || exit 1
[ "$(readlink -f -- "$place")" = "$place" ] || {{ echo "$place leads elsewhere" >&2; exit 1; }}
if [ $# -gt 0 ] && mount "$@" "$place"; then
    mount --make-private -- "$place" && echo snapshot
    exit
fi
mount --bind -- "$own" "$place" || exit 1
if mount --make-private -- "$place" && mount -o remount,bind,ro,{_SAFE} -- "$place"; then
    echo live
else
    umount -- "$place"
    exit 1
fi
"""
# An rsync whose connection broke may need a moment to end.
_UNMOUNT = """
for _ in 1 2 3 4 5 6 7 8 9 10; do
    umount -- "$1" 2>/dev/null && exit
    sleep 0.5
done
exec umount -- "$1"
"""
# Only folders, only empty ones, only on the file system that our own folder is on.
_TIDY = f"[ ! -e {ROOT} ] || exec find {ROOT} -xdev -depth -type d -empty -delete"


def make(shell: Shell, paths: Sequence[str], wanted: WantedSnapshot, room_percent: int, now: datetime) -> SnapshotTree:
    """Snapshot every file system that a path lies on, where that is possible, and mount all of them as one tree.

    What cannot be snapshotted is read live, and the tree says why. CommandFailed when the client cannot tell what it
    has mounted. After an error, too, `clear` takes away what was made.
    """
    run_id = new_id(now)
    survey = _look(shell, paths)
    parts, instants = _take(shell, plan(survey, paths, wanted, room_percent, run_id), run_id)
    parts, inside = _mount(shell, parts, run_id)
    hidden = _not_empty(shell, run_id, shadowed(survey, inside))
    return tree_of(survey, paths, run_id, parts=parts, inside=inside, instants=instants, hidden=hidden)


def outlook(shell: Shell, paths: Sequence[str], wanted: WantedSnapshot, room_percent: int) -> str:
    """What `make` would read from where, as of now; without paths, of every local file system. Nothing is made."""
    survey = _look(shell, paths)
    parts = plan(survey, paths or local_places(survey), wanted, room_percent, new_id(datetime.now(UTC)))
    return ", ".join(f"{part.mount.mountpoint} {part.kind}{part.reason and f' ({part.reason})'}" for part in parts)


def require_whole(shell: Shell, tree: SnapshotTree, room_percent: int) -> None:
    """SourceRefused unless every snapshot of the tree is still what it was when it was made."""
    if lines := lost(tree, _look(shell, ()), room_percent):
        raise SourceRefused(shell.target.name, "; ".join(lines))


@dataclass(frozen=True)
class _Removal:
    """A command that takes something of ours away, and what an operator does when it fails."""

    what: str
    argv: Sequence[str]
    undo: str


def clear(shell: Shell) -> list[str]:
    """Unmount and remove all snapshots of ours, of this run and of any other; what stays behind, a line each."""
    survey = _look(shell, ())
    removals = [
        *(_Removal(place, ["sh", "-c", _UNMOUNT, "sh", place], f"umount {place}") for place in our_mounts(survey)),
        *(
            _Removal(f"LVM snapshot {name}", ["lvremove", "--yes", name], f"lvremove {name}")
            for name in our_volumes(survey)
        ),
        *(_deletion(device, names) for device, names in _subvolumes(shell, btrfs_devices(survey)).items()),
    ]
    if not removals:
        return []
    *answers, _ = _each(shell, [*(removal.argv for removal in removals), ["sh", "-c", _TIDY]])
    return [
        str(LeftBehind(removal.what, _last_line(done), removal.undo))
        for removal, done in zip(removals, answers, strict=True)
        if done.status != 0
    ]


def _deletion(device: str, names: Sequence[str]) -> _Removal:
    folders = " ".join(f"/mnt/{BTRFS_FOLDER}/{name}" for name in names)
    return _Removal(
        f"btrfs snapshots {', '.join(names)} on {device}",
        ["sh", "-c", _DELETE_BTRFS, "sh", device, f"{ROOT}/top", *names],
        f"mount -o subvolid=5 {device} /mnt && btrfs subvolume delete {folders}; umount /mnt",
    )


def _look(shell: Shell, paths: Sequence[str]) -> Survey:
    """What the client has; CommandFailed when it cannot tell what is mounted."""
    parents = {path: str(PurePosixPath(path).parent) for path in paths}
    commands = [["cat", "/proc/self/mountinfo"], ["lvs", *_LVM, LVS], ["vgs", *_LVM, VGS]]
    mounts, lvs, vgs, *links = _each(shell, [*commands, *(["readlink", "-f", "--", up] for up in parents.values())])
    if mounts.status != 0:
        raise CommandFailed(f"mountinfo on {shell.target.name}", mounts.status, mounts.stderr.strip())
    asked = zip(parents.items(), links, strict=True)
    try:
        return Survey(
            mounts=tuple(parse_mounts(mounts.stdout)),
            volumes=parse_volumes(lvs.stdout),
            groups=parse_groups(vgs.stdout),
            linked=frozenset(path for (path, parent), done in asked if done.stdout != f"{parent}\n"),
            complaints=tuple(
                f"its LVM does not tell all: {_last_line(done)}"
                for done in (lvs, vgs)
                if done.status not in (0, _NOT_THERE)
            ),
        )
    except (ValueError, KeyError, TypeError) as exc:
        raise CommandFailed(f"lvs on {shell.target.name}", 0, f"its output cannot be read: {exc!r}") from exc


def _take(shell: Shell, parts: Sequence[Part], run_id: str) -> tuple[list[Part], dict[str, datetime]]:
    """Make all snapshots, one right after the other: the parts as they are then, and the instant of each by name."""
    asked = [part for part in parts if part.kind != "live"]
    if not asked:
        return list(parts), {}
    *answers, clock = _each(shell, [*(_take_argv(part, run_id) for part in asked), ["date", "+%s.%N"]])
    # Of the client's clock, which may be wrong, only how long ago it was is taken.
    offset_s = datetime.now(UTC).timestamp() - float(clock.stdout)
    done = {part.name: answer for part, answer in zip(asked, answers, strict=True)}
    instants = {
        name: datetime.fromtimestamp(float(answer.stdout) + offset_s, UTC)
        for name, answer in done.items()
        if answer.status == 0
    }
    return [
        part if part.kind == "live" or part.name in instants else _live(part, "no snapshot was made", done[part.name])
        for part in parts
    ], instants


def _take_argv(part: Part, run_id: str) -> list[str]:
    if part.kind == "lvm":
        return ["sh", "-c", _TAKE_LVM, "sh", part.name, TAG, str(part.extents), part.origin]
    top = f"{ROOT}/{run_id}/top"
    return ["sh", "-c", _TAKE_BTRFS, "sh", part.mount.source, top, part.mount.mountpoint, part.name]


def _mount(shell: Shell, parts: Sequence[Part], run_id: str) -> tuple[list[Part], list[Part]]:
    """Mount the tree, from above to below: the parts as they are then, and those that are in it."""
    place = [tree_path(run_id, part.mount.mountpoint) for part in parts]
    commands = [
        ["sh", "-c", _MOUNT, "sh", where, part.mount.mountpoint, *_mount_words(part)]
        for part, where in zip(parts, place, strict=True)
    ]
    answers = _each(shell, commands)
    known = [
        part
        if done.stdout.strip() == ("live" if part.kind == "live" else "snapshot")
        else _live(part, "not mounted", done)
        for part, done in zip(parts, answers, strict=True)
    ]
    return known, [part for part, done in zip(known, answers, strict=True) if done.status == 0]


def _mount_words(part: Part) -> list[str]:
    if part.kind == "lvm":
        options = f"{LVM_MOUNT_OPTIONS[part.mount.fstype]},{_SAFE}"
        return ["-t", part.mount.fstype, "-o", options, "--", f"/dev/{part.snapshot}"]
    if part.kind == "btrfs":
        return ["-t", "btrfs", "-o", f"subvol={BTRFS_FOLDER}/{part.name},ro,{_SAFE}", "--", part.mount.source]
    return []


def _live(part: Part, what: str, done: Output) -> Part:
    """The part, read live because a command failed."""
    return Part(part.mount, reason=f"{what}: {_last_line(done)}", unexpected=True)


def _not_empty(shell: Shell, run_id: str, places: Sequence[str]) -> list[str]:
    """Those of the places whose folder in the tree holds something."""
    tree, found = tree_path(run_id), []
    for start in range(0, len(places), _AT_ONCE):
        folders = [f"{tree}{place}" for place in places[start : start + _AT_ONCE]]
        (done,) = _each(shell, [["find", *folders, "-maxdepth", "0", "-type", "d", "!", "-empty", "-print0"]])
        found += [path.removeprefix(tree) for path in done.stdout.split("\0") if path]
    return found


def _subvolumes(shell: Shell, places: Mapping[str, str]) -> dict[str, list[str]]:
    """Our snapshots on btrfs file systems: device → names."""
    lists = _each(shell, [["btrfs", "subvolume", "list", "-a", "-r", "-s", place] for place in places.values()])
    found = {device: our_subvolumes(done.stdout) for device, done in zip(places, lists, strict=True)}
    return {device: names for device, names in found.items() if names}


def _each(shell: Shell, commands: Sequence[Sequence[str]]) -> list[Output]:
    """Run the commands one after the other; what each left. At its deadline one is asked to end on the client, too.

    None is ever killed: LVM takes no other signal while a volume is suspended, and a root file system that nobody
    resumes is a client that stands still.
    """
    deadline_s = DEADLINE_S * len(commands) + GRACE_S
    return run_each(shell, [["timeout", str(DEADLINE_S), *argv] for argv in commands], deadline_s=deadline_s)


def _last_line(done: Output) -> str:
    if done.status == _TIMED_OUT:
        return f"it was ended after {DEADLINE_S} s"
    return (done.stderr.strip() or "it failed").splitlines()[-1]
