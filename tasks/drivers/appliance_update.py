"""Update the file systems of an image in libguestfs' appliance, with rsync, from a night's files on this machine.

rsync runs inside the appliance through `guestfs.debug("sh", …)`: `rsync_in` knows neither -H nor -A nor -X. The
call is not part of libguestfs's stable interface, but enabled in every build since 1.5.7 (daemon/debug.c). Where
it is missing, the update fails before anything is written.
"""

import contextlib
import os
import re
import shlex
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.drivers import appliance_channel, appliance_mounts, source_tree
from tasks.drivers.appliance_session import Handle, Reporter, launched
from tasks.drivers.process import no_room
from tasks.errors import (
    CommandFailed,
    ImageFull,
    ImageUnfit,
    IntegrityError,
    RecoveryRefused,
    SourceRefused,
    StoreError,
)
from tasks.model import boot_names, image_update
from tasks.model.image_update import MountedBy

SYSROOT = "/sysroot"
_PASS = f"""rsync {{options}} --from0 --filter='. /tmp/{{rules}}' --stats --no-human-readable --info=progress2 \
 --outbuf=N --log-file=/tmp/gbs-log --log-file-format=%i {appliance_channel.SOURCE} {SYSROOT}/ \
 >>{appliance_channel.OUTPUT_PORT} 2>>gbs-errors"""
_ENDED = """
echo $?
grep -cE '\\] [<>ch.][fdLDS]' gbs-log
grep -cF '] *deleting' gbs-log
tail -c 3000 gbs-errors
"""
_PROGRESS = re.compile(rb"\r\s*(\d+) [^\r]*to-chk=(\d+)/(\d+)")
_RECEIVED = re.compile(rb"^Total bytes received: (\d+)", re.M)
_WRITTEN = re.compile(rf'"{SYSROOT}(/[^"]*)"')
_SENDER = re.compile(r"^.*rsync: \[sender\] (.*(?:Input/output error|Stale file handle).*)$", re.M)
"""What the daemon says when the night cannot be read on this machine."""
_DAMAGED = ("Structure needs cleaning", "Input/output error", "Read-only file system")
"""What the kernel answers when a file system is not what its superblock says (EUCLEAN, EIO, EROFS)."""
_LABELLED = ("/", "/etc", "/etc/selinux/config", "/usr", "/usr/bin", "/var")
"""Files that every labelled system has labels on."""


def update(request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Do what `tasks.drivers.appliance.update_files` promises."""
    folder, source = Path(request["folder"]), Path(request["source"])
    image = request["image"]
    mounts = [MountedBy(**system) for system in request["file_systems"]]
    channel = appliance_channel.Channel(folder)
    started = time.monotonic()
    parameters = channel.prepare(source, fake_super=request["fake_super"])
    with launched(request, parameters, readonly=False) as handle:
        launch_s = time.monotonic() - started
        reporter.now("mounting the image's file systems")
        texts = _texts(source, mounts)
        nested, warnings = _mount(handle, image, source, texts, mounts)
        _check_source(handle, source, mounts, request["keep"])
        needed = _require_room(handle, image, source, mounts)
        _prepare(handle, folder, mounts, request["keep"], nested)
        reporter.now("comparing files")
        with _followed(channel, reporter):
            status, changed, deleted, *errors = handle.debug("sh", [_script(mounts)]).split("\n")
        if status != "0":
            words = "\n".join([*errors, channel.log_tail()]).strip()
            if unread := _SENDER.search(words):
                raise StoreError(str(source), f"cannot be read: {unread[1]}")
            raise _failed(handle, image, mounts, needed, int(status), words)
        if boot_names.uses_selinux(texts) and _relabel(handle):
            warnings.append("the night has no SELinux labels: the VM labels all its files anew when it boots first")
        if int(changed) or int(deleted):
            reporter.now("giving back what deleted files used")
            _trim(handle, mounts)
        reporter.now("writing the image")
        handle.umount_all()
        handle.shutdown()
    for path, _ in request["disks"]:
        _sync(path)
    received = _RECEIVED.findall(channel.output.read_bytes())
    return {
        "files_changed": int(changed),
        "files_deleted": int(deleted),
        "bytes_sent": sum(map(int, received)),
        "launch_s": launch_s,
        "warnings": warnings,
    }


def _mount(
    handle: Handle, image: str, source: Path, texts: Mapping[str, str], mounts: list[MountedBy]
) -> tuple[list[str], list[str]]:
    """Mount what the image must have for the night, all of it; nested subvolumes, and what boots without, in words."""
    handle.debug("sh", ["command -v rsync"])  # fails here, before anything is written
    devices = appliance_mounts.devices(handle)
    found = appliance_mounts.find(handle, image, mounts, devices)
    warnings = _require_names(image, texts, boot_names.known_names(devices))
    _require_kernel(image, source, texts)
    return appliance_mounts.mount(handle, image, found), warnings


def _trim(handle: Handle, mounts: list[MountedBy]) -> None:
    for system in mounts:
        with contextlib.suppress(RuntimeError):  # a file system that cannot
            handle.fstrim(system.mountpoint)


def _texts(source: Path, mounts: list[MountedBy]) -> dict[str, str]:
    """The files of the night that name disks."""
    paths = [boot_names.FSTAB, boot_names.CRYPTTAB, boot_names.SELINUX, *boot_names.GRUB_CONFIGS]
    for system in filter(appliance_mounts.is_coarse, mounts):
        folder = f"{system.mountpoint}/EFI"
        with contextlib.suppress(SourceRefused):
            paths += [f"{folder}/{name}/grub.cfg" for name in source_tree.names_in(source, folder) or ()]
    return {path: text for path in paths if (text := source_tree.text_of(source, path))}


def _require_names(image: str, texts: Mapping[str, str], known: set[str]) -> list[str]:
    """ImageUnfit when the night's files name a disk without which nothing boots; what else they miss, in words."""
    lacking = boot_names.missing(texts, known)
    if stopping := [one for one in lacking if one.stops_boot]:
        wanted = "; ".join(f"{one.name}, named by {one.where} of the night" for one in stopping)
        has = sorted(name for name in known if name.startswith(("uuid=", "/dev/")))
        raise ImageUnfit(image, wanted, ", ".join(has) or "nothing")
    return [one.words for one in lacking]


def _require_kernel(image: str, source: Path, texts: Mapping[str, str]) -> None:
    """RecoveryRefused when GRUB's menu names kernels and the night has none of them, as amid an upgrade."""
    named = boot_names.kernels(texts)
    if named and not any(source_tree.exists(source, place) for places in named.values() for place in places):
        reason = f"its GRUB would boot {', '.join(named)}, and the night has no such kernel"
        raise RecoveryRefused(image, reason, "choose another night (--from)")


def _check_source(handle: Handle, source: Path, mounts: list[MountedBy], keep: list[str]) -> None:
    """Refuse a source that would empty a file system: a mount point that was not mounted when the night was taken."""
    for place in (system.mountpoint for system in mounts):
        names = source_tree.names_in(source, place)
        if (names is None and place != "/") or f"{place.rstrip('/')}/*" in keep:
            continue
        if any(name != "lost+found" for name in names or ()):
            continue
        if place == "/" or any(name != "lost+found" for name in handle.ls(place)):
            reason = f"it holds nothing of {place}, and the image does; to keep the image's, keep {place.rstrip('/')}/*"
            raise SourceRefused(str(source), reason)


def _require_room(handle: Handle, image: str, source: Path, mounts: list[MountedBy]) -> dict[str, int]:
    """The bytes that each file system is to hold at least; ImageFull, nothing is written, when one is smaller."""
    needed = source_tree.bytes_by_place(source, [system.mountpoint for system in mounts])
    for system in mounts:
        place, has = system.mountpoint, handle.statvfs(system.mountpoint)
        whole = has["blocks"] * has["frsize"]
        if needed[place] > whole and system.fstype != "btrfs":  # that may compress
            raise ImageFull(image, f"{place} ({system.fstype})", needed[place], whole)
    return needed


def _prepare(handle: Handle, folder: Path, mounts: list[MountedBy], keep: list[str], nested: list[str]) -> None:
    """Bring rsync's rules into the appliance and its network card up."""
    rules = {"gbs-tree": image_update.tree_rules(mounts, keep, nested)}
    rules["gbs-coarse"] = image_update.coarse_rules(mounts, keep)
    for name, lines in rules.items():
        local = folder / name
        local.write_bytes(b"".join(os.fsencode(rule) + b"\0" for rule in lines))
        handle.debug_upload(str(local), f"/tmp/{shlex.quote(name)}", 0o700)  # noqa: S108 - the appliance's /tmp
    handle.debug("sh", [appliance_channel.PREPARE])


def _script(mounts: list[MountedBy]) -> str:
    passes = [_PASS.format(options=image_update.TREE_OPTIONS, rules="gbs-tree")]
    if any(map(appliance_mounts.is_coarse, mounts)):
        passes.append(_PASS.format(options=image_update.COARSE_OPTIONS, rules="gbs-coarse"))
    return "cd /tmp && : >gbs-log && : >gbs-errors\n" + " &&\n".join(passes) + _ENDED


def _failed(
    handle: Handle, image: str, mounts: list[MountedBy], needed: Mapping[str, int], status: int, words: str
) -> Exception:
    """What rsync's failure means: no room, a damaged file system, or what it says."""
    kinds = {system.mountpoint: system.fstype for system in mounts}
    path = found[1] if (found := _WRITTEN.search(words)) else "/"
    place = image_update.place_of_path(path, kinds)
    if no_room(words):
        has = handle.statvfs(place)
        return ImageFull(image, f"{place} ({kinds[place]})", needed[place], has["bfree"] * has["frsize"])
    if damage := next((text for text in _DAMAGED if text in words), None):
        return IntegrityError(image, f"a sound {kinds[place]} on {place}", f"{damage} ({path})")
    return CommandFailed(f"rsync into {image}", status, words)


def _relabel(handle: Handle) -> bool:
    """Ask SELinux to label all files at boot, unless they came with labels."""
    there = filter(handle.exists, _LABELLED)
    if all("security.selinux" in {row["attrname"] for row in handle.lgetxattrs(path)} for path in there):
        return False
    if not handle.exists(image_update.RELABEL):
        root = handle.lstatns("/")
        handle.touch(image_update.RELABEL)
        times = (root[f"st_{name}time_{unit}"] for name in "am" for unit in ("sec", "nsec"))
        handle.utimens("/", *times)  # the night's, again
    return True


@contextlib.contextmanager
def _followed(channel: appliance_channel.Channel, reporter: Reporter) -> Iterator[None]:
    """Turn what rsync prints in the appliance into progress while the block runs."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(1):
            with channel.output.open("rb") as output:
                output.seek(max(0, channel.output.stat().st_size - 200))
                found = _PROGRESS.findall(output.read())
            if found:
                sent, left, total = (int(number) for number in found[-1])
                reporter.text = f"copying files, {sent >> 20} MiB sent"
                reporter.part = (total - left) / total if total else None

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _sync(image: str) -> None:
    descriptor = os.open(image, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
