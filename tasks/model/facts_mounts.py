"""Facts: what is mounted (findmnt), and what will be at the next boot (fstab, crypttab). Secrets are struck out."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.model.device import REDACTED
from tasks.model.fact import FactRow

REMOTE_OR_VIRTUAL = frozenset(
    (
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs"),
        *("fusectl", "hugetlbfs", "iso9660", "mqueue", "nsfs", "overlay", "proc", "pstore", "ramfs", "rpc_pipefs"),
        *("securityfs", "selinuxfs", "squashfs", "sysfs", "tmpfs", "tracefs"),
        *("nfsd", "resctrl", "rootfs", "smackfs", "fuse", "fuse.gvfsd-fuse", "fuse.sshfs"),
        *("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs", "afs"),
    )
)
"""File systems that hold nothing of the client's own."""
_OCTAL = re.compile(r"\\([0-3][0-7]{2})")
_SECRET = re.compile("pass|secret|pin-value", re.IGNORECASE)
_LOGIN = re.compile(r".*?(?://|#)[^/@:#\s]*:")
"""Up to the password of `https://user:password@host` and `curlftpfs#user:password@host`."""


class FileSystem(FactRow):
    """A mounted local file system."""

    mountpoint: str
    source: str
    fstype: str
    uuid: str | None = None
    size_bytes: int
    used_bytes: int


class FstabEntry(FactRow):
    """A line of /etc/fstab; `check_pass` is the order of fsck at boot, 0 for never."""

    source: str
    mountpoint: str
    fstype: str
    options: str = "defaults"
    check_pass: int = 0


class CrypttabEntry(FactRow):
    """A line of /etc/crypttab; `key_file` is a path, `none` where the passphrase is asked for."""

    name: str
    source: str
    key_file: str = "none"
    options: str = ""


def parse_file_systems(text: str) -> tuple[FileSystem, ...]:
    """Rows of `findmnt -J -b -l`: real local file systems, one row a mount point, bind mounts left out.

    findmnt shows bind mounts and btrfs subvolumes alike as `device[/folder]`. A subvolume is kept: rsync's
    --one-file-system does not descend into it. So is a folder whose device is mounted whole nowhere, unless another
    mount shows it.
    """
    found = _mounts(text)
    rows = {
        row["target"]: FileSystem(
            mountpoint=row["target"],
            source=row["source"],
            fstype=row["fstype"],
            uuid=row.get("uuid"),
            size_bytes=int(row.get("size") or 0),
            used_bytes=int(row.get("used") or 0),
        )
        for row in found
        if not _is_bind(row, found)
    }
    return tuple(rows[target] for target in sorted(rows))


def parse_bind_mounts(text: str) -> tuple[str, ...]:
    """The mount points of `findmnt -J -l` that show what another mount holds: the rows that the above leaves out."""
    found = _mounts(text)
    return tuple(sorted({row["target"] for row in found if _is_bind(row, found)}))


def subvolume_of(row: FileSystem) -> str:
    """The folder of its file system that is mounted there: of btrfs, the subvolume; `/` for all of it."""
    return _shown({"source": row.source})[1]


def _mounts(text: str) -> list[Mapping[str, Any]]:
    found = json.loads(text)["filesystems"] if text.strip() else []
    return [row for row in found if row["fstype"] not in REMOTE_OR_VIRTUAL and not row["fstype"].startswith("fuse.")]


def _is_bind(row: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> bool:
    """A folder of a device that is no subvolume, and that another mount shows, too."""
    device, folder = _shown(row)
    if folder == "/" or f"subvol={folder}" in (row.get("options") or "").split(","):
        return False
    shown = [other for of, other in map(_shown, others) if of == device and other != folder]
    return any(f"{folder}/".startswith(f"{other.rstrip('/')}/") for other in shown)


def _shown(row: Mapping[str, Any]) -> tuple[str, str]:
    """The device of a mount, and the folder of it that shows there."""
    device, _, folder = row["source"].partition("[")
    return device, folder.removesuffix("]") or "/"


def parse_fstab(text: str) -> tuple[FstabEntry, ...]:
    """The lines of /etc/fstab in their order (fstab(5)); what mount(8) would not read is left out."""
    return tuple(
        FstabEntry(
            source=_without_password(_unescaped(fields[0])),
            mountpoint=_unescaped(fields[1]),
            fstype=fields[2],
            options=_without_secrets(_unescaped(fields[3])) if len(fields) > 3 else "defaults",
            check_pass=int(fields[5]) if len(fields) > 5 and re.fullmatch("[0-9]{1,9}", fields[5]) else 0,
        )
        for fields in _table(text)
        if len(fields) >= 3
    )


def parse_crypttab(text: str) -> tuple[CrypttabEntry, ...]:
    """The lines of /etc/crypttab in their order (crypttab(5)).

    Its third field is kept when it is a path: with `keyscript=` it may be the passphrase itself.
    """
    return tuple(
        CrypttabEntry(
            name=fields[0],
            source=fields[1],
            key_file=_key_file(fields[2] if len(fields) > 2 else "none"),
            options=_without_secrets(fields[3]) if len(fields) > 3 else "",
        )
        for fields in _table(text)
        if len(fields) >= 2
    )


def _table(text: str) -> Iterator[list[str]]:
    # Blanks and tabs alone set fields apart: a mount point may hold any other white space.
    for line in text.split("\n"):
        fields = re.split(r"[ \t]+", line.strip(" \t\r"))
        if not fields[0].startswith("#"):
            yield fields


def _unescaped(field: str) -> str:
    r"""A field with its \040 and the like resolved, as getmntent(3) does."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), field)


def _key_file(field: str) -> str:
    if field in ("none", "-"):
        return "none"
    return field if field.startswith("/") else REDACTED


def _without_password(source: str) -> str:
    login, at, host = source.rpartition("@")
    found = _LOGIN.match(login) if at else None
    return f"{found[0]}{REDACTED}@{host}" if found else source


def _without_secrets(options: str) -> str:
    """The options up to the first secret: it may hold commas, so that nothing after it is safe to keep.

    `credentials=`, `secretfile=` and the like name files.
    """
    kept = ""
    for part in re.split("([,;])", options):
        word = _SECRET.search(part)
        equals = part.find("=", word.end()) if word else -1
        if equals >= 0 and not part[:equals].endswith("file"):
            return f"{kept}{part[:equals]}={REDACTED}"
        kept += part
    return options


MOUNTS = "TARGET,SOURCE,FSTYPE,OPTIONS"
"""Nothing that a dead server is asked for."""
FINDMNT = "TARGET,SOURCE,FSTYPE,UUID,SIZE,USED,OPTIONS"
