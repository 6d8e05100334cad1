"""Manifests: what a published thing is, and the sha256 and size of every file in it. No manifest, no backup."""

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from tasks.model.databases import DumpedBy
from tasks.model.outcome import Outcome
from tasks.model.shape import Shape

MANIFEST = "manifest.json"
LISTING = "SHA256SUMS"
TEMPLATE = "template.json"
OWN = "own_sha256"
"""What a manifest's JSON says of itself: the sha256 of all the rest of it, keys sorted, without spaces, in UTF-8."""


def _inside(path: str) -> str:
    if path.startswith("/") or {"", ".", ".."} & set(path.split("/")) or "\0" in path:
        raise ValueError(f"path {path!r} leads out of its folder")
    return path


ImageMethod = Literal["snaplive", "backup-api", "offline"]
SourceKind = Literal["live", "lvm", "btrfs"]
PathInside = Annotated[str, AfterValidator(_inside)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Sealed(_Record):
    """A record whose JSON proves itself (OWN), so that damage is no other truth. Older ones do not, and are taken."""

    @model_serializer(mode="wrap")
    def _seal(self, serialize: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        record: dict[str, Any] = serialize(self)
        return {**record, OWN: _sha256_of(record)} if info.mode == "json" else record

    @model_validator(mode="before")
    @classmethod
    def _is_as_sealed(cls, record: Any) -> Any:
        if not isinstance(record, dict) or OWN not in record:
            return record
        rest = {key: value for key, value in record.items() if key != OWN}
        if record[OWN] != _sha256_of(rest):
            raise ValueError("it is not what it was written as: its own sha256 is another")
        return rest


def _sha256_of(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class FileRecord(_Record):
    """One published file: its path below the manifest's folder, its size, and its sha256 (hex) or a listing of them.

    `chunks` names the file with the sha256 of each chunk (`tasks.drivers.chunks`), which is itself listed with its own.
    """

    path: PathInside
    size_bytes: int = Field(ge=0)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    chunks: PathInside | None = None

    @model_validator(mode="after")
    def _has_one_proof(self) -> Self:
        if (self.sha256 is None) == (self.chunks is None):
            raise ValueError(f"{self.path}: either a sha256 or a listing of chunks")
        return self


class DumpRecord(_Record):
    """One database dump on the client: engine, database, absolute path, size and the sha256 made on the client."""

    engine: DumpedBy
    kind: Literal["database", "accounts"] = "database"
    """`accounts` holds what belongs to the whole server: roles, users and their grants, its configuration."""
    database: str
    path: str
    size_bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tables: int | None = Field(None, ge=0)
    """Counted after a restore into a throw-away server; of Redis, keys. None when that was not asked for or failed."""

    @property
    def called(self) -> str:
        """What the inventory calls its engine or command (Database.called)."""
        return f"command {self.database}" if self.engine == "command" else self.engine


class SourceRecord(_Record):
    """What the files of one of a client's file systems were read from."""

    place: str
    """Where the client has it mounted."""
    kind: SourceKind
    instant: AwareDatetime | None = None
    """When the files were as they are in this night; None of what was read live."""
    reason: str = ""
    """Why it was read live."""


class NightCost(_Record):
    """What a night added to its client's overnight copy: what is no hard link to the night before."""

    night: str
    new_bytes: int = Field(ge=0)
    new_inodes: int = Field(ge=0)


class NightManifest(_Sealed):
    """A client's files as of one night. Every file is in `SHA256SUMS` beside it, whose own hash stands here."""

    kind: Literal["night"] = "night"
    id: str
    client: str
    started: AwareDatetime
    ended: AwareDatetime
    outcome: Outcome
    warnings: tuple[str, ...] = ()
    paths: tuple[str, ...]
    excluded: tuple[str, ...]
    """rsync patterns of what was left out; recovery keeps the image's own content there."""
    sources: tuple[SourceRecord, ...] = ()
    """Which file system was read from a snapshot and which live; empty when no snapshots were asked for."""
    dumps: tuple[DumpRecord, ...] = ()
    flavour: str = ""
    files: int = Field(ge=0)
    size_bytes: int = Field(ge=0)
    costs: tuple[NightCost, ...] = ()
    """Of this night, and before it of the last ones; a first night, which adds everything, is not among them."""
    fake_super: bool = False
    """Whether owners, devices and xattrs are in an xattr of rsync's, which reads them again with --fake-super."""
    listing_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    facts_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tools: dict[str, str] = {}


class DiskRecord(_Record):
    """One disk of an image: libvirt's target, the file that holds it, its format, where it lay on the KVM host."""

    target: str
    file: PathInside
    format: Literal["qcow2", "raw"]
    source: str
    source_format: Literal["qcow2", "raw"] | None = None
    """What it was in on the host; None when it was the image's format."""
    source_kind: Literal["file", "block"] = "file"
    volume: str = ""
    """`POOL/VOLUME` where the definition named it so."""
    options: tuple[str, ...] = ()
    """What its qcow2 file on the host was created with, as `qemu-img create -o` takes it."""
    virtual_size_bytes: int = Field(gt=0)
    increment: str = ""
    """Why its changes were enough, or why all of it was copied."""


class VmParts(_Record):
    """What makes the VM besides its disks: files of the image by what they are, and what no image holds."""

    autostart: bool = False
    live_definition: PathInside | None = None
    """The definition as it ran, when it did."""
    files: dict[str, PathInside] = {}
    """nvram (UEFI variables), kernel, initrd, dtb."""
    sources: dict[str, str] = {}
    """Where those lay on the host."""
    tpm_state: PathInside | None = None
    """A tar(1) of the emulated TPM's folder."""
    networks: dict[str, PathInside] = {}
    """Definitions of the libvirt networks that it is connected to, by name."""
    pools: dict[str, PathInside] = {}
    secrets: tuple[str, ...] = ()
    """libvirt's secrets that it needs, by name; their values are in no image."""
    warnings: tuple[str, ...] = ()

    @property
    def all_files(self) -> tuple[str, ...]:
        """All of the image's files that are named here."""
        named = (*self.files.values(), *self.networks.values(), *self.pools.values(), self.live_definition)
        return tuple(path for path in (*named, self.tpm_state) if path is not None)


class TemplateManifest(_Sealed):
    """An image that may serve every system of its shape, and where it came from."""

    kind: Literal["template"] = "template"
    flavour: str
    shape: Shape
    """What the image itself shows; its flavour is computed from nothing else."""
    vm: str
    image: str
    added: AwareDatetime


class DeviceManifest(_Sealed):
    """A device's configuration as it first was so, and when it was last seen so."""

    kind: Literal["device"] = "device"
    id: str
    device: str
    address: str
    type: str
    first_seen: AwareDatetime
    last_seen: AwareDatetime
    """The only field that changes: an unchanged configuration is kept once."""
    unsaved: bool = False
    """Whether the device would start with another configuration than it runs with."""
    files: tuple[FileRecord, ...]


class ServerManifest(_Sealed):
    """What a GBS server is rebuilt from besides its packages: inventory, blocks, Prefect's database, sealed keys."""

    kind: Literal["server"] = "server"
    id: str
    site: str
    made: AwareDatetime
    sealed_for: tuple[str, ...] = ()
    """The recovery keys that open the sealed files; their secret halves are kept elsewhere."""
    warnings: tuple[str, ...] = ()
    files: tuple[FileRecord, ...]
    tools: dict[str, str] = {}


class ImageManifest(_Sealed):
    """One dated copy of a VM's disks and definition, all disks from one instant."""

    kind: Literal["image"] = "image"
    id: str
    vm: str
    uuid: str
    kvm_host: str
    started: AwareDatetime
    ended: AwareDatetime
    instant: AwareDatetime
    """When the disks were as they are in this image."""
    method: ImageMethod
    method_reason: str
    consistency: Literal["application", "file-system", "crash"]
    consistency_reason: str
    window_s: float = Field(ge=0)
    """Seconds from snapshot to pivot; 0 when there was no window."""
    copy_s: float = Field(ge=0)
    frozen_s: float = Field(ge=0)
    bytes_moved: int = Field(0, ge=0)
    """What travelled to make it."""
    flavour: str = ""
    parent: str | None = None
    """The image whose clone this one began as, when only changes were copied."""
    checkpoint: str | None = None
    """The checkpoint in libvirt that the next increment begins at."""
    disks: tuple[DiskRecord, ...]
    parts: VmParts = VmParts()
    files: tuple[FileRecord, ...]
    warnings: tuple[str, ...] = ()
    tools: dict[str, str] = {}

    @model_validator(mode="after")
    def _disks_have_checksums(self) -> Self:
        listed = {file.path for file in self.files if file.sha256}
        unlisted = {*(disk.file for disk in self.disks), *self.parts.all_files} - {file.path for file in self.files}
        unlisted |= {file.chunks for file in self.files if file.chunks} - listed
        if unlisted:
            raise ValueError(f"no checksum of the file {min(unlisted)!r}")
        return self
