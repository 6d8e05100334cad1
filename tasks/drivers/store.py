"""The store on disk: where everything lies, and how it is published so that only what is complete is ever seen."""

import ctypes
import errno
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tasks.drivers import process
from tasks.drivers.digest import sha256_file, verify_record
from tasks.errors import IntegrityError, StoreError
from tasks.model.manifest import LISTING, MANIFEST, TEMPLATE, DeviceManifest, ImageManifest, NightManifest
from tasks.model.names import slug

REMOVE_DEADLINE_S = 6 * 3600
RENAME_EXCHANGE = 2
AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)
log = logging.getLogger(__name__)
Model = TypeVar("Model", bound=BaseModel)


class Store:
    """The folders of a store by the real names of what they hold."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def overnight(self, client: str) -> Path:
        """The client's files as of its last good night."""
        return self.root / "overnight" / slug(client)

    def staging(self, client: str) -> Path:
        """Where tonight's copy grows until it is good."""
        return self.root / "overnight" / ".partial" / slug(client)

    def aborted(self, client: str) -> Path:
        """What an interrupted pull brought; no slug starts with a dot, so no client's staging bears this name."""
        return self.staging(client).with_name(f".{slug(client)}.aborted")

    def changed(self, client: str) -> Path:
        """What changed in the client's overnight copy since the one before."""
        return self.root / "changed" / slug(client)

    def prepared(self, client: str) -> Path:
        """What stage 0 found and made on the client."""
        return self.root / "prepared" / f"{slug(client)}.json"

    def images(self, kvm_host: str, vm: str) -> Path:
        """The folder of a VM's images, one folder each."""
        return self.root / "images" / slug(kvm_host) / slug(vm)

    def device(self, name: str) -> Path:
        """The configurations of a device, a folder for each that differs from the one before."""
        return self.root / "devices" / slug(name)

    def configurations_of(self, name: str) -> list[tuple[Path, DeviceManifest]]:
        """All kept configurations of a device, newest first."""
        found = []
        for path in self.device(name).glob(f"*/{MANIFEST}"):
            manifest = None if path.parent.name.startswith(".") else listed_model(path, DeviceManifest)
            if manifest is not None:
                found.append((path.parent, manifest))
        return sorted(found, key=lambda item: item[1].id, reverse=True)

    @property
    def templates(self) -> Path:
        """Images that serve every system of a flavour: a folder a flavour, in it one for each image."""
        return self.root / "templates"

    @property
    def recovery_sets(self) -> Path:
        """What this GBS server is rebuilt from, a folder for each time that it was gathered."""
        return self.root / "server"

    def recovery(self, name: str) -> Path:
        """Where an updated image is made before it goes to a KVM host."""
        return self.root / "recovery" / slug(name)

    def drills(self, vm: str) -> Path:
        """What the drills of a VM showed, a folder each."""
        return self.root / "drills" / slug(vm)

    def opened(self, client: str) -> Path:
        """Where a client's restore points are brought from an engine that does not keep them as folders."""
        return self.root / "opened" / slug(client)

    def lock(self, kind: str, name: str) -> Path:
        """The lock file of a client, a VM or a target."""
        return self.root / "locks" / f"{kind}-{slug(name)}"

    @property
    def journal(self) -> Path:
        """The journals of snapshot windows."""
        return self.root / "journal"

    @property
    def reports(self) -> Path:
        """What runs did, one file each."""
        return self.root / "reports"

    @property
    def space(self) -> Path:
        """How full the stores were, night by night, and what was measured of their folders."""
        return self.root / "space"

    @property
    def trash(self) -> Path:
        """What was replaced, until it is removed."""
        return self.root / "trash"

    def night_of(self, client: str) -> NightManifest | None:
        """The manifest of the overnight copy, or None when there is none."""
        return read_model(self.overnight(client) / MANIFEST, NightManifest)

    def listing_of(self, client: str) -> Path | None:
        """The sha256 listing of the overnight copy; None when there is none or it is not what its manifest says."""
        night, listing = self.night_of(client), self.overnight(client) / LISTING
        intact = night is not None and listing.is_file() and sha256_file(listing) == night.listing_sha256
        return listing if intact else None

    def images_of(self, vm: str) -> list[tuple[Path, ImageManifest]]:
        """All published images of a VM, from whatever host, newest first."""
        found = []
        for path in self.root.glob(f"images/*/{slug(vm)}/*/{MANIFEST}"):
            manifest = None if path.parent.name.startswith(".") else listed_model(path, ImageManifest)
            if manifest is not None and manifest.vm == vm:
                found.append((path.parent, manifest))
        return sorted(found, key=lambda item: item[1].id, reverse=True)

    def all_images(self) -> Iterator[tuple[Path, ImageManifest]]:
        """Every published image."""
        for path in sorted(self.root.glob(f"images/*/*/*/{MANIFEST}")):
            manifest = None if path.parent.name.startswith(".") else listed_model(path, ImageManifest)
            if manifest is not None:
                yield path.parent, manifest


def read_model(path: Path, model: type[Model]) -> Model | None:
    """The record in a JSON file, or None when there is no file; IntegrityError when it does not validate."""
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"]))
        found = f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
        raise IntegrityError(str(path), f"a {model.__name__}", found) from exc


def listed_model(path: Path, model: type[Model]) -> Model | None:
    """As `read_model`, where many are listed: one that cannot be read is no reason to stop the others, but is told."""
    try:
        return read_model(path, model)
    except IntegrityError as exc:
        log.error("%s", exc)
        return None


def write_model(path: Path, record: BaseModel) -> None:
    """Write a record as JSON; as `write_bytes`."""
    write_bytes(path, record.model_dump_json(indent=1).encode() + b"\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that the names in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush the whole file system of `folder` (syncfs(2)): cheaper than an fsync for each of many files."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flush(handle)
    except OSError as exc:
        raise StoreError(str(folder), f"cannot be flushed: {exc.strerror}") from exc
    finally:
        os.close(handle)


def flush(handle: int) -> None:
    """Flush the whole file system of an open file; OSError when one of its writes since then failed (syncfs(2))."""
    if _libc.syncfs(handle) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def publish(partial: Path, final: Path) -> None:
    """Make a complete `partial` folder, whose manifest is written, visible as `final`, which must not exist."""
    _require_manifest(partial)
    if final.exists():
        raise StoreError(str(final), "exists already and is never replaced")
    sync_tree(partial)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(final)
    sync_folder(final.parent)


def _require_manifest(partial: Path) -> None:
    if not (partial / MANIFEST).exists():
        raise StoreError(str(partial), "has no manifest and is not a backup")


def replace(partial: Path, final: Path) -> None:
    """Make `partial` visible as `final` in one step (renameat2 RENAME_EXCHANGE); the old one becomes `partial`."""
    if not final.exists():
        publish(partial, final)
        return
    _require_manifest(partial)
    sync_tree(partial)
    status = _libc.renameat2(AT_FDCWD, os.fsencode(partial), AT_FDCWD, os.fsencode(final), RENAME_EXCHANGE)
    if status != 0:
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise StoreError(str(final), f"cannot be replaced: {os.strerror(code)}")
        aside = final.with_name(f".{final.name}.old")
        final.rename(aside)
        partial.rename(final)
        aside.rename(partial)
    sync_folder(final.parent)


def discard(folder: Path, trash: Path, name: str) -> None:
    """Remove a tree by way of the trash, so that no reader ever sees half of it."""
    if not folder.exists():
        return
    trash.mkdir(parents=True, exist_ok=True)
    doomed = trash / f"{name}-{os.getpid()}-{os.urandom(3).hex()}"
    folder.rename(doomed)
    remove(doomed)


def remove(folder: Path, watch: Callable[[], None] | None = None) -> None:
    """Remove a tree; rm(1) takes three quarters of the time of our own. `watch` is as in `process.run`."""
    process.run(["rm", "-rf", "--one-file-system", "--", str(folder)], deadline_s=REMOVE_DEADLINE_S, watch=watch)


def verify_night(folder: Path, manifest: NightManifest) -> None:
    """Raise IntegrityError unless the listing and the facts are those of the manifest (the files are not read)."""
    for name, expected in ((LISTING, manifest.listing_sha256), ("facts.json", manifest.facts_sha256)):
        found = sha256_file(folder / name) if (folder / name).exists() else "nothing"
        if found != expected:
            raise IntegrityError(str(folder / name), expected, found)


def verify_image(folder: Path, manifest: ImageManifest, *, percent: float = 100) -> int:
    """The bytes that were read; IntegrityError unless the image has exactly the files of its manifest, as it says.

    That it serves as a template may be noted beside them.

    Below 100 `percent`, only that part of each disk is read, chosen by chance.
    """
    read = 0

    def count(size_bytes: int) -> None:
        nonlocal read
        read += size_bytes

    expected = {MANIFEST, TEMPLATE, *(file.path for file in manifest.files)}
    for path in sorted(folder.iterdir()):
        if path.name not in expected:
            raise IntegrityError(str(path), "no such file in the image", "a file that its manifest does not name")
    # The listings of chunks first: they are what the disks are measured by.
    for file in sorted(manifest.files, key=lambda file: file.chunks is not None):
        verify_record(folder, file, count, percent=percent)
    return read


def keeps_nanoseconds(folder: Path) -> bool:
    """Whether the file system of `folder`, which is made, keeps the time of a file to the nanosecond."""
    folder.mkdir(parents=True, exist_ok=True)
    mtime_ns = 123_456_789
    with tempfile.TemporaryFile(dir=folder) as file:
        os.utime(file.fileno(), ns=(mtime_ns, mtime_ns))
        return os.fstat(file.fileno()).st_mtime_ns == mtime_ns
