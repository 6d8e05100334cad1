"""VDO beneath a file system: which pool it lies on, what that has, and how one is made (lvmvdo(7), vdostats(8))."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from tasks.drivers import process
from tasks.drivers.store import sync_folder
from tasks.errors import AccessDenied, CommandFailed, ConfigError, LeftBehind
from tasks.model.room import VdoUsage
from tasks.model.vdo import Setup, Step, on_device, parse_usage

DEADLINE_S = 60
MAKE_DEADLINE_S = 3600
TOOLS = ("wipefs", "lsblk", "pvcreate", "vgcreate", "lvcreate", "vdoformat", "vdostats", "dmsetup", "mkfs.xfs")
FSTAB = Path("/etc/fstab")
_SYS = Path("/sys/dev/block")


def pool_of(device: str, sys: Path = _SYS) -> str | None:
    """The VDO pool that a device (`major:minor`) lies on, whatever lies between, by device mapper's name; else None."""
    pending, seen = [sys / device], set[Path]()
    while pending:
        found = pending.pop()
        if found in seen or not found.exists():
            continue
        seen.add(found)
        uuid = _word(found / "dm/uuid")
        # LVM names the device of a pool so; VDO's own manager, before LVM could, named it by itself.
        if uuid.startswith("VDO-") or (uuid.startswith("LVM-") and uuid.endswith("-vpool")):
            return _word(found / "dm/name")
        # A partition has no slaves of its own: those are its disk's.
        below = found / "slaves" if (found / "slaves").is_dir() else found.resolve().parent / "slaves"
        pending += [slave.resolve() for slave in below.glob("*")]
    return None


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def usage(pool: str) -> VdoUsage:
    """What a pool says of itself; CommandFailed when vdostats is not there or fails."""
    done = process.run(["vdostats", "--verbose", pool], deadline_s=DEADLINE_S, name=f"vdostats of {pool}")
    return parse_usage(pool, done.text)


def size_of(device: Path) -> int:
    """The bytes of a block device; ConfigError when it is none."""
    try:
        if not stat.S_ISBLK(device.stat().st_mode):
            raise ConfigError(f"{device} is no block device", "--vdo", "name a whole disk or a partition")
        return int(_blockdev(device, "--getsize64"))
    except OSError as exc:
        raise ConfigError(f"{device}: {exc.strerror}", "--vdo", "name a whole disk or a partition") from exc


def _blockdev(device: Path, what: str) -> str:
    return process.run(["blockdev", what, str(device)], deadline_s=DEADLINE_S, name=f"blockdev {what}").text.strip()


def require_empty(device: Path) -> None:
    """ConfigError unless nothing is on a block device and nobody has it: it is about to be overwritten."""
    lsblk = ["lsblk", "-J", "-o", "PATH,TYPE,FSTYPE,MOUNTPOINTS", str(device)]
    wipefs = ["wipefs", "--no-act", "--json", str(device)]
    said = [process.run(argv, deadline_s=DEADLINE_S).text for argv in (lsblk, wipefs)]
    found = on_device(*said)
    if _blockdev(device, "--getro") != "0":
        found.append("it is read-only")
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))  # the kernel says no where anything holds it
    except OSError as exc:
        found.append(f"the kernel does not give it away: {exc.strerror}")
    if found:
        fix = f"name another device; if nothing on it is needed: wipefs --all {device}"
        raise ConfigError(f"{device} is not empty: {'; '.join(found)}", "--vdo", fix)


def make(setup: Setup, say: Callable[[Step], None]) -> None:
    """Carry out a set-up as root on a device that has nothing; `say` is told each step before it is done.

    ConfigError when something is in the way, before anything is done; LeftBehind when a step fails.
    """
    if os.geteuid() != 0:
        raise AccessDenied("this server", "making a volume needs root", "run it as root, or the printed commands")
    _require_tools()
    require_empty(setup.device)
    mounted = setup.mountpoint
    if mounted.exists() and (os.path.ismount(mounted) or any(mounted.iterdir())):
        raise ConfigError(f"{mounted} is not empty or something is mounted there", "--mountpoint", "name another")
    if any(words[1:2] == [str(mounted)] for words in map(str.split, FSTAB.read_text().splitlines())):
        raise ConfigError(f"{FSTAB} has {mounted} already", "--mountpoint", "name another, or take that line out")
    for step in setup.steps:
        say(step)
        try:
            _do(step)
        except (CommandFailed, OSError) as exc:
            what = f"what was made of volume group {setup.name} on {setup.device}"
            raise LeftBehind(what, f"{exc}", setup.undo) from exc


def _require_tools() -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise ConfigError(f"not installed: {' '.join(missing)}", "this server", "install lvm2, vdo and xfsprogs")
    for module in ("dm-vdo", "kvdo"):  # the kernel's own, and what was built for it before 6.9
        process.run(["modprobe", "--quiet", module], deadline_s=DEADLINE_S, accept=lambda status: True)
    targets = process.run(["dmsetup", "targets"], deadline_s=DEADLINE_S, accept=lambda status: True).text
    if not any(line.startswith("vdo ") for line in targets.splitlines()):
        raise ConfigError(
            "this kernel has no VDO", "this server", "Linux 6.9 has it if built so (dm-vdo), RHEL as kvdo"
        )


def _do(step: Step) -> None:
    if step.file is None:
        process.run(step.argv, deadline_s=MAKE_DEADLINE_S)
        return
    with step.file.open("a+") as file:
        file.seek(0)
        text = file.read()
        file.write(("" if not text or text.endswith("\n") else "\n") + step.text + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(step.file.parent)
