"""What a night's files name of its disks: fstab, crypttab and GRUB find file systems by names that files do not carry.

An image that lacks one of them would not boot, or not wholly, however well its files were updated.
"""

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from tasks.model.facts_mounts import REMOTE_OR_VIRTUAL, parse_crypttab, parse_fstab
from tasks.model.shape import mapped_name

FSTAB, CRYPTTAB, SELINUX = "/etc/fstab", "/etc/crypttab", "/etc/selinux/config"
GRUB_CONFIGS = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
_BY = {f"/dev/disk/by-{key}/": f"{key}=" for key in ("uuid", "label", "partuuid", "partlabel")}
_TAGS = ("uuid=", "label=", "partuuid=", "partlabel=")
_SEARCH = re.compile(r"^\s*search(?:\.fs_uuid\s+(?P<stub>\S+)|\s.*--fs-uuid\s(?P<words>.*))", re.M)
_LINUX = re.compile(r"^\s*linux(?:16|efi)?\s+(?P<kernel>\S+)(?P<rest>.*)", re.M)
_ROOT = re.compile(r"\sroot=(\S+)")
_SELINUX = re.compile(r"^\s*SELINUX\s*=\s*(enforcing|permissive)\s*$", re.M | re.I)
_WAITS = 90
"""Seconds that systemd waits for a device (DefaultTimeoutStartSec)."""


@dataclass(frozen=True)
class Named:
    """A name of something on a disk, the file that has it, and what comes of it when no disk has it."""

    where: str
    name: str
    stops_boot: bool

    @property
    def words(self) -> str:
        """For operators."""
        after = "" if self.stops_boot else f"; it boots without, after a wait of up to {_WAITS} s"
        return f"{self.where} names {self.name}, and no disk of the image has it{after}"


def canonical(source: str) -> str | None:
    """A device of fstab as `known_names` has it; None of what no image tells: a kernel name, a server."""
    source = source.replace('"', "")
    for folder, tag in _BY.items():
        if source.startswith(folder):
            source = tag + source.removeprefix(folder).replace("\\x20", " ")
    key, equals, value = source.partition("=")
    if equals and f"{key.lower()}=" in _TAGS:
        return f"{key.lower()}={value.lower() if key.lower().endswith('uuid') else value}"
    parts = source.split("/")
    if source.startswith("/dev/mapper/"):
        return None if parts[-1].startswith("mpath") else source
    # /dev/VG/LV; /dev/disk/by-id and by-path are names that the virtual hardware gives.
    if source.startswith("/dev/") and len(parts) == 4 and parts[2] not in ("disk", "md", "block", "cciss"):
        return f"/dev/mapper/{mapped_name(parts[2], parts[3])}"
    return None


def parse_blkid(text: str) -> list[dict[str, str]]:
    """The devices of `blkid -o export` (blkid(8)), each with its DEVNAME and what is known of it."""
    blocks = (block.splitlines() for block in text.strip().split("\n\n"))
    pairs = [[line.partition("=") for line in block if "=" in line] for block in blocks]
    return [{key: re.sub(r"\\(.)", r"\1", value) for key, _, value in block} for block in pairs if block]


def known_names(devices: Iterable[Mapping[str, str]]) -> set[str]:
    """All canonical names of an image's devices, which are as `parse_blkid` gives them."""
    tags = {f"{key}={row[key]}" for row in devices for key in ("UUID", "LABEL", "PARTUUID", "PARTLABEL") if key in row}
    names = {row["DEVNAME"] for row in devices}
    return {name for name in map(canonical, tags | names) if name}


def missing(texts: Mapping[str, str], known: Collection[str]) -> list[Named]:
    """What the files of a night (by path) name and an image, whose `known_names` these are, does not have."""
    opened = set[str]()
    rows = list[Named]()
    for crypt in parse_crypttab(texts.get(CRYPTTAB, "")):
        name = canonical(crypt.source)
        if name is None or name in known:
            opened.add(f"/dev/mapper/{crypt.name}")
        else:
            rows.append(Named(CRYPTTAB, crypt.source, stops_boot=False))
    rows += _of_fstab(texts.get(FSTAB, ""), {*known, *opened})
    configs = {path: text for path, text in texts.items() if path.endswith("/grub.cfg")}
    # Of the loaders in an EFI system partition one boots; others may be left from other days.
    loaders = {path: text for path, text in configs.items() if path not in GRUB_CONFIGS}
    menus = {path: text for path, text in configs.items() if path in GRUB_CONFIGS}
    for path, text in {**menus, ", ".join(loaders): "\n".join(loaders.values())}.items():
        rows += _of_grub(path, text, {*known, *opened})
    return rows


def _of_fstab(text: str, known: Collection[str]) -> Iterator[Named]:
    """systemd does not go on without a local file system that is not `nofail` (systemd.mount(5))."""
    for entry in parse_fstab(text):
        options = set(entry.options.split(","))
        name = canonical(entry.source)
        if entry.fstype in REMOTE_OR_VIRTUAL or {"noauto", "bind", "rbind", "_netdev"} & options:
            continue
        if name is not None and name not in known:
            waits = entry.fstype == "swap" or {"nofail", "x-systemd.automount"} & options
            place = entry.fstype if entry.fstype == "swap" else entry.mountpoint
            yield Named(FSTAB, f"{entry.source} ({place})", stops_boot=not waits)


def _of_grub(path: str, text: str, known: Collection[str]) -> Iterator[Named]:
    """GRUB's menu may name other systems' disks, too: what counts is that something of it is there."""
    searched = [f"uuid={found['stub'] or _last(found['words'])}".lower() for found in _SEARCH.finditer(text)]
    given = [root for found in _LINUX.finditer(text) for root in _ROOT.findall(found["rest"])]
    roots = [name for root in given if (name := canonical(root))]
    for names in (searched, roots):
        if names and not set(names) & set(known):
            yield Named(path, ", ".join(dict.fromkeys(names)), stops_boot=True)


def _last(words: str) -> str:
    try:
        return shlex.split(words)[-1]
    except (ValueError, IndexError):
        return ""


def kernels(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """The kernels that GRUB's menus name, each with the places where a client may have it.

    GRUB's paths begin at the top of a file system: /boot's, the root's, or that of which a subvolume is the root.
    """
    found = dict[str, list[str]]()
    for path in GRUB_CONFIGS:
        for line in _LINUX.finditer(texts.get(path, "")):
            kernel = "/" + re.sub(r"^\([^)]*\)", "", line["kernel"]).lstrip("/")
            inside = kernel.split("/", 2)[-1]
            found[kernel] = [f"/boot{kernel}", kernel, f"/{inside}"]
    return found


def uses_selinux(texts: Mapping[str, str]) -> bool:
    """Whether /etc/selinux/config says that the system runs with SELinux."""
    return _SELINUX.search(texts.get(SELINUX, "")) is not None
