"""The child process that drives libguestfs for `tasks.drivers.appliance`: one JSON request in, JSON lines out.

rsync runs inside the appliance through `guestfs.debug("sh", …)`: `rsync_in` knows neither -H nor -A nor -X. The
call is not part of libguestfs's stable interface, but enabled in every build since 1.5.7 (daemon/debug.c). Where
it is missing, the update fails before anything is written.
"""

import contextlib
import json
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import guestfs

from tasks.drivers import appliance_channel, appliance_files
from tasks.errors import CommandFailed, GbsError, IntegrityError, SourceRefused

Handle = Any
"""A guestfs.GuestFS: nobody publishes types for it."""
SYSROOT = "/sysroot"
# Deletions first: the night may need the room. Nanoseconds: a file rewritten within the second of the image is found.
_TREE = "-aHAXS --numeric-ids --whole-file --delete-before --modify-window=-1"
_RSYNC = f"""cd /tmp && : >gbs-log
rsync {_TREE} --from0 --filter='. /tmp/gbs-filter' --stats --no-human-readable --info=progress2 --outbuf=N \
 --log-file=/tmp/gbs-log --log-file-format=%i {appliance_channel.SOURCE} {SYSROOT}/ \
 >{appliance_channel.OUTPUT_PORT} 2>gbs-errors
echo $?
grep -cE '\\] [<>ch.][fdLDS]' gbs-log
grep -cF '] *deleting' gbs-log
tail -c 3000 gbs-errors
"""
_PROGRESS = re.compile(rb"\r\s*(\d+) [^\r]*to-chk=(\d+)/(\d+)")
_RECEIVED = re.compile(rb"^Total bytes received: (\d+)", re.M)
_WILD = re.compile(r"([\[*?\\])")


class Reporter:
    """Says every second how far the work is: a JSON line on standard output."""

    def __init__(self) -> None:
        self.text: str = "starting the appliance"
        self.part: float | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._beat, daemon=True).start()

    def now(self, text: str) -> None:
        """Enter a phase."""
        self.text, self.part = text, None
        self.say(progress=[text, None])

    def say(self, **line: Any) -> None:
        """Write one line."""
        with self._lock:
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()

    def _beat(self) -> None:
        while True:
            time.sleep(1)
            self.say(progress=[self.text, self.part])


@contextlib.contextmanager
def _launched(request: dict[str, Any], parameters: list[tuple[str, str]], *, readonly: bool) -> Iterator[Handle]:
    """The appliance with the image; always closed, and QEMU with it."""
    handle: Handle = guestfs.GuestFS(python_return_dict=True)
    with contextlib.closing(handle):
        handle.set_tmpdir(request["folder"])
        handle.set_network(False)
        # "unsafe": flushes of the appliance are not worth waiting for, the image is synced once, at the end.
        options = {} if readonly else {"cachemode": "unsafe", "discard": "enable"}
        for image in request["images"]:
            handle.add_drive_opts(image, format=request["format"], readonly=readonly, **options)
        for name, value in parameters:
            handle.config(name, value)
        handle.launch()
        yield handle


def _update(request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    folder, (image,) = Path(request["folder"]), request["images"]
    channel = appliance_channel.Channel(folder)
    started = time.monotonic()
    parameters = channel.prepare(Path(request["source"]), fake_super=request["fake_super"])
    with _launched(request, parameters, readonly=False) as handle:
        launch_s = time.monotonic() - started
        reporter.now("mounting the image's file systems")
        handle.debug("sh", ["command -v rsync"])  # fails here, before anything is written
        _mount(handle, image, request["file_systems"])
        _check_source(handle, request)
        _upload(handle, folder, "gbs-filter", b"".join(os.fsencode(rule) + b"\0" for rule in _filter_rules(request)))
        handle.debug("sh", [appliance_channel.PREPARE])
        reporter.now("comparing files")
        with _followed(channel, reporter):
            status, changed, deleted, *errors = handle.debug("sh", [_RSYNC]).split("\n")
        if status != "0":
            words = "\n".join([*errors, channel.log_tail()]).strip()
            raise CommandFailed(f"rsync into {image}", int(status), words)
        if int(changed) or int(deleted):
            reporter.now("giving back what deleted files used")
            for system in request["file_systems"]:
                handle.fstrim(system["mountpoint"])
        reporter.now("writing the image")
        handle.umount_all()
        handle.shutdown()
    _sync(image)
    received = _RECEIVED.findall(channel.output.read_bytes())
    return {
        "files_changed": int(changed),
        "files_deleted": int(deleted),
        "bytes_sent": int(received[-1]) if received else 0,
        "launch_s": launch_s,
    }


def _mount(handle: Handle, image: str, wanted: list[dict[str, str]]) -> None:
    """Mount each file system of the facts at its place; all are found before the first is mounted."""
    found = {system["uuid"]: _find(handle, image, system) for system in wanted}
    for system in sorted(wanted, key=lambda one: one["mountpoint"].rstrip("/").count("/")):
        place = system["mountpoint"]
        if place != "/":
            if not handle.exists(place):
                handle.mkdir_p(place)
            # A link would lead the mount to some other place, even out of the image.
            if handle.realpath(place) != place or not handle.is_dir(place):
                raise IntegrityError(image, f"a folder {place} to mount {system['uuid']} on", handle.realpath(place))
        handle.mount_options("noatime", found[system["uuid"]], place)


def _find(handle: Handle, image: str, system: dict[str, str]) -> str:
    """The device that holds a file system of the facts."""
    uuid, place = system["uuid"], system["mountpoint"]
    try:
        device: str = handle.findfs_uuid(uuid)
    except RuntimeError as error:
        known = {handle.vfs_uuid(device) for device, _ in _mountable(handle)}
        wanted = f"{place} ({system['fstype']}) with UUID {uuid}"
        raise IntegrityError(image, wanted, ", ".join(sorted(known)) or "no file system") from error
    kind = handle.vfs_type(device)
    if kind != system["fstype"]:
        raise IntegrityError(image, f"{system['fstype']} with UUID {uuid} ({place})", kind)
    return device


def _check_source(handle: Handle, request: dict[str, Any]) -> None:
    """Refuse a source that would empty a file system: a mount point that was not mounted when the night was taken."""
    for place in (system["mountpoint"] for system in request["file_systems"]):
        folder = Path(request["source"], place.lstrip("/"))
        there = folder.is_dir() and any(entry.name != "lost+found" for entry in os.scandir(folder))
        if there or (place != "/" and not os.path.lexists(folder)) or f"{place.rstrip('/')}/*" in request["keep"]:
            continue
        if place == "/" or any(name != "lost+found" for name in handle.ls(place)):
            reason = f"it holds nothing of {place}, and the image does; to keep the image's, keep {place.rstrip('/')}/*"
            raise SourceRefused(request["source"], reason)


def _filter_rules(request: dict[str, Any]) -> list[str]:
    """rsync's rules: mount points are never deleted, kept paths are neither sent nor deleted."""
    places = [_WILD.sub(r"\\\1", system["mountpoint"].rstrip("/")) for system in request["file_systems"]]
    rules = [f"P {place}" for place in places if place] + [f"P {place}/lost+found" for place in places]
    return rules + [f"- {pattern}" for pattern in request["keep"]]


def _upload(handle: Handle, folder: Path, name: str, content: bytes) -> None:
    local = folder / name
    local.write_bytes(content)
    handle.debug_upload(str(local), f"/tmp/{shlex.quote(name)}", 0o700)  # noqa: S108 - the appliance's /tmp


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


def _mountable(handle: Handle) -> list[tuple[str, str]]:
    """(device, type) of what holds a file system; swap and unknown contents have none."""
    found = handle.list_filesystems().items()
    return [(device, kind) for device, kind in found if kind not in ("swap", "unknown", "")]


def _shape(request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """What `tasks.model.shape` wants to know of an image's disks; nothing is mounted but to read /etc/fstab."""
    with _launched(request, [], readonly=True) as handle:
        reporter.now("reading the layout")
        roots = handle.inspect_os()
        architecture = handle.inspect_get_arch(roots[0]) if roots else ""
        places: dict[str, list[str]] = {}
        for place, device in (handle.inspect_get_mountpoints(roots[0]) if roots else {}).items():
            places.setdefault(device, []).append(place)

        def content(device: str) -> dict[str, Any]:
            kind = handle.vfs_type(device)
            points = sorted(places.get(handle.canonical_device_name(device), []))
            return {"size_bytes": handle.blockdev_getsize64(device), "holds": kind, "mountpoints": points}

        partitions = handle.list_partitions()
        disks = []
        for disk in handle.list_devices():
            mine = [part for part in partitions if handle.part_to_dev(part) == disk]
            table = _table(handle, disk)
            whole = {**content(disk), **({"holds": ""} if table else {}), "table": table}
            disks.append({**whole, "partitions": [{**content(part), "type": _type(handle, part)} for part in mine]})
        volumes = [{**content(path), "kind": "lvm", "name": _mapped(path)} for path in handle.lvs()]
        for array in handle.list_md_devices():
            volumes.append({**content(array), "kind": handle.md_detail(array).get("level", "md"), "name": ""})
        return {"architecture": architecture, "disks": disks, "volumes": volumes}


def _table(handle: Handle, disk: str) -> str:
    try:
        table: str = handle.part_get_parttype(disk)
    except RuntimeError:
        return ""  # a disk that is one file system or one physical volume
    return "dos" if table == "msdos" else "" if table == "loop" else table


def _type(handle: Handle, partition: str) -> str:
    """A partition's type as lsblk writes it."""
    disk, number = handle.part_to_dev(partition), handle.part_to_partnum(partition)
    if handle.part_get_parttype(disk) == "gpt":
        return str(handle.part_get_gpt_type(disk, number)).lower()
    return f"0x{handle.part_get_mbr_id(disk, number):x}"


def _mapped(path: str) -> str:
    """The device mapper's name of /dev/VG/LV, as lsblk shows it."""
    return "-".join(part.replace("-", "--") for part in path.split("/")[2:])


def _files(request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    return appliance_files.send(request, lambda parameters: _launched(request, parameters, readonly=True), reporter.now)


def main() -> int:
    """Answer the request on standard input."""
    request = json.loads(sys.stdin.read())
    reporter = Reporter()
    try:
        reporter.say(answer={"update": _update, "shape": _shape, "files": _files}[request["do"]](request, reporter))
    except GbsError as error:
        reporter.say(error=type(error).__name__, attributes=list(error.args))
        return 1
    except RuntimeError as error:  # all that guestfs raises
        reporter.say(error="CommandFailed", attributes=[f"libguestfs on {request['images'][0]}", 1, str(error)])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
