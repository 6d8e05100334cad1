"""Files on a KVM host, through its shell; paths are data and only ever words of an argv."""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.drivers.host_shell import HostShell, run_each
from tasks.drivers.ssh import Output
from tasks.errors import CommandFailed, InodesFull, StoreFull

DEADLINE_S = 30
MIN_FREE_INODES = 100
IMAGE_FOLDER = "/var/lib/libvirt/images"
"""Where libvirt keeps images by default."""
_FREE_FORMAT = "%a %S %d %c %i"
BOOT_ID_ARGV = ("cat", "/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class FileStat:
    """Which file a path names, and its size."""

    device: int
    inode: int
    size_bytes: int


@dataclass(frozen=True)
class FreeSpace:
    """What a file system has left for root-less writers; `inodes` is None where they are not counted."""

    size_bytes: int
    inodes: int | None
    file_system: str = ""
    """The kernel's id of it: two folders with the same one share its room."""


def folder_of(path: str) -> str:
    """The folder of an absolute path of the host."""
    return path.rpartition("/")[0] or "/"


def stat_argv(path: str) -> list[str]:
    """Ask which file a path names; `parse_stat` reads the answer."""
    return ["stat", "-L", "-c", "%d %i %s", "--", path]


def parse_stat(done: Output, path: str) -> FileStat | None:
    """The file at `path`, or None when there is none; CommandFailed when that cannot be said (EIO, ESTALE ...)."""
    if done.status == 0:
        return FileStat(*map(int, done.stdout.split()))
    if "No such file or directory" in done.stderr or "Not a directory" in done.stderr:
        return None
    raise CommandFailed(f"stat {path}", done.status, done.stderr.strip())


def stat_files(shell: HostShell, paths: Sequence[str]) -> list[FileStat | None]:
    """The files at these paths, in one round trip; errors as `parse_stat`."""
    answers = run_each(shell, [stat_argv(path) for path in paths], deadline_s=DEADLINE_S)
    return [parse_stat(answer, path) for answer, path in zip(answers, paths, strict=True)]


def free_space_argv(path: str) -> list[str]:
    """Ask what the file system of a path has left; `parse_free_space` reads the answer."""
    return ["stat", "-f", "-c", _FREE_FORMAT, "--", path]


def parse_free_space(done: Output, path: str) -> FreeSpace:
    """What the file system of `path` has left; CommandFailed when that cannot be said."""
    if done.status != 0:
        raise CommandFailed(f"stat -f {path}", done.status, done.stderr.strip())
    *numbers, file_system = done.stdout.split()
    blocks, block_bytes, inodes, all_inodes = map(int, numbers)
    return FreeSpace(blocks * block_bytes, inodes if all_inodes else None, file_system)


def require_free(left: FreeSpace, what: str, size_bytes: int) -> None:
    """StoreFull, naming `what`, unless that much room is left, and inodes for some files."""
    if left.size_bytes < size_bytes:
        raise StoreFull(what, size_bytes, left.size_bytes)
    if left.inodes is not None and left.inodes < MIN_FREE_INODES:
        raise InodesFull(what, MIN_FREE_INODES, left.inodes)


def free_space(shell: HostShell, folder: str) -> FreeSpace:
    """What is left on the file system where `folder` is, or would be made; CommandFailed when that cannot be said."""
    nearest = 'while [ "$1" ] && ! [ -e "$1" ]; do set -- "${1%/*}" "$2"; done; exec stat -f -c "$2" -- "${1:-/}"'
    argv = ["sh", "-c", nearest, "sh", folder, _FREE_FORMAT]
    return parse_free_space(shell.run(argv, deadline_s=DEADLINE_S, name=f"stat -f {folder}"), folder)


def remove(shell: HostShell, paths: Sequence[str]) -> None:
    """Remove files; it is no error when they have gone."""
    shell.run(["rm", "-f", "--", *paths], deadline_s=DEADLINE_S)


def rename(shell: HostShell, path: str, target: str) -> None:
    """Rename a file within its folder; CommandFailed when `target` exists."""
    script = 'test ! -e "$2" && exec mv -T -- "$1" "$2"'
    shell.run(["sh", "-c", script, "sh", path, target], deadline_s=DEADLINE_S, name=f"mv {path}")


def boot_id(shell: HostShell) -> str:
    """The id of the host's current boot."""
    return shell.run(BOOT_ID_ARGV, deadline_s=DEADLINE_S).stdout.strip()
