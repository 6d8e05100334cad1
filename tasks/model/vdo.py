"""A store on VDO: the commands that make it, what may not lie on its device, what `vdostats` says."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import CommandFailed, ConfigError
from tasks.model.room import VdoUsage

LOGICAL_TIMES = 3
"""A file system of so many times the device's size: what several clients have alike is stored once. It can grow."""
LEAST_BYTES = 6 << 30
"""The index alone takes 2.5 GiB."""
_SMALL, _LARGE = 64 << 30, 4 << 40
_SPARSE_FROM = 1 << 40
_MIB = 1 << 20
_DISCARD_BLOCKS = 256
"""With 1, as LVM has it, giving back 12 GiB took six times as long (Linux 6.12)."""
_SIZE = re.compile(r"(\d+)([KMGT])", re.IGNORECASE)
_USAGE = re.compile(r"^\s+([^:]+?)\s*:\s*(.*?)\s*$", re.M)


@dataclass(frozen=True)
class Step:
    """A command, or a line that is put into a file, and why."""

    why: str
    argv: tuple[str, ...] = ()
    file: Path | None = None
    text: str = ""

    @property
    def line(self) -> str:
        """What somebody would type."""
        if self.file is None:
            return shlex.join(self.argv)
        return f"echo {shlex.quote(self.text)} >>{shlex.quote(str(self.file))}"


@dataclass(frozen=True)
class Setup:
    """A store on VDO that is to be made: its volume group, its device, where it is mounted."""

    name: str
    device: Path
    mountpoint: Path
    steps: tuple[Step, ...]

    @property
    def undo(self) -> str:
        """The command that takes a half-made one away."""
        where, name, device = (shlex.quote(str(word)) for word in (self.mountpoint, self.name, self.device))
        return f"umount {where}; vgremove --yes {name}; pvremove --yes {device}; and its line in /etc/fstab"


def setup(device: Path, size_bytes: int, name: str, logical_bytes: int | None, mountpoint: Path) -> Setup:
    """How a store is put on VDO on a device of `size_bytes`.

    `name` is the volume group's and stands in the marker. ConfigError for a device that is too small, and for a name
    that LVM would not take.
    """
    if size_bytes < LEAST_BYTES:
        raise ConfigError(f"{device} has {size_bytes} bytes", "--vdo", f"VDO needs at least {LEAST_BYTES}")
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,60}", name):
        raise ConfigError(f"{name!r} is no name of a volume group", "--name", "use small letters, digits, _ . -")
    logical_bytes = (logical_bytes or size_bytes * LOGICAL_TIMES) // _MIB * _MIB
    volume = f"/dev/{name}/store"
    # Not --yes but here: on what is new to LVM it would wipe what it finds, and here only what an older volume left.
    # A pool has 8192 slabs at most, and slabs keep their size: small ones leave a large pool no room to grow.
    slab_mib = 128 if size_bytes < _SMALL else 2048 if size_bytes < _LARGE else 32768
    lvcreate = ["lvcreate", "--yes", "--type", "vdo", "--name", "store", "--extents", "100%FREE"]
    lvcreate += ["--virtualsize", f"{logical_bytes}b", "--config", _settings(slab_mib, size_bytes >= _SPARSE_FROM)]
    escaped = re.sub(r"[ \t\\]", lambda found: f"\\{ord(found[0]):03o}", str(mountpoint))  # fstab(5)
    mounted = f"{volume} {escaped} xfs noatime,discard 0 0"
    steps = (
        Step("the disk becomes LVM's", ("pvcreate", str(device))),
        Step("a volume group of its own", ("vgcreate", name, str(device))),
        Step("deduplicated and compressed", (*lvcreate, f"{name}/pool")),
        Step("nothing to discard yet; reflinks", ("mkfs.xfs", "-q", "-K", "-m", "reflink=1", volume)),
        Step("where it is mounted", ("mkdir", "-p", str(mountpoint))),
        Step("at every boot; VDO is told what is removed", file=Path("/etc/fstab"), text=mounted),
        Step("now", ("mount", str(mountpoint))),
        Step("its marker", file=mountpoint / ".gbs-store", text=name),
    )
    return Setup(name, device, mountpoint, steps)


def _settings(slab_mib: int, sparse: bool) -> str:
    settings = [f"vdo_slab_size_mb={slab_mib}", f"vdo_max_discard={_DISCARD_BLOCKS}"]
    # A sparse index remembers ten times as much data in the same memory (lvm.conf(5)).
    settings += ["vdo_use_sparse_index=1"] if sparse else []
    return "allocation{" + " ".join(settings) + "}"


def size_from(text: str) -> int:
    """The bytes of `500G`; ConfigError when it is not such a size."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise ConfigError(f"{text!r} is no size", "--logical-size", "write it as 500G (K, M, G, T: powers of 1024)")
    return int(found[1]) << 10 * (1 + "KMGT".index(found[2].upper()))


def on_device(lsblk: str, wipefs: str) -> list[str]:
    """What is on a device by `lsblk -J` and `wipefs --no-act --json`, a few words each; [] when it is empty."""
    found = [f"a signature of {row['type']}" for row in _rows(wipefs, "signatures")]
    pending = _rows(lsblk, "blockdevices")
    while pending:
        row = pending.pop()
        places = [place for place in row.get("mountpoints") or () if place]
        found += [f"{row['path']} is in use as {place}" for place in places]
        pending += (children := row.get("children") or [])
        found += [f"{child['path']} ({child['type']}) lies on it" for child in children]
    return found


def _rows(text: str, key: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(text)[key] if text.strip() else []
    return rows


def parse_usage(pool: str, text: str) -> VdoUsage:
    """What `vdostats --verbose` says of a pool; CommandFailed when it does not say it."""
    values = dict(_USAGE.findall(text))
    try:
        block = int(values["block size"])
        return VdoUsage(
            pool=pool,
            mode=values["operating mode"],
            size_bytes=int(values["physical blocks"]) * block,
            overhead_bytes=int(values["overhead blocks used"]) * block,
            data_bytes=int(values["data blocks used"]) * block,
            logical_bytes=int(values["logical blocks used"]) * block,
        )
    except (KeyError, ValueError) as exc:
        raise CommandFailed(f"vdostats of {pool}", 0, f"no {exc} in what it says: {text[:200]}") from exc
