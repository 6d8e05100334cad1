"""The inventory: the one declaration of what is protected and how. Small by default, unknown keys are errors."""

from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tasks.model.client_snapshot import WantedSnapshot
from tasks.model.image_method import WantedMethod
from tasks.model.inventory_databases import Database
from tasks.model.inventory_devices import Device, Login
from tasks.model.inventory_fields import AbsolutePath, Address, Name, Port, Section, User
from tasks.model.names import slug
from tasks.model.retention import Retain


class Platform(StrEnum):
    """What a client runs; it decides commands, default excludes and how facts are read."""

    LINUX = "linux"


DEFAULT_EXCLUDES = {
    Platform.LINUX: (
        "/proc/*",
        "/sys/*",
        "/dev/*",
        "/run/*",
        "/tmp/*",  # noqa: S108 - a pattern, not a file of ours
        "/var/tmp/*",  # noqa: S108
        "/var/cache/apt/archives/*.deb",
        "/swapfile",
        "/swap.img",
        "lost+found",
    ),
}


class Identity(Section):
    """Who we are to a system over ssh: a user and the files of its key and of the host keys that we trust."""

    user: User = "root"
    private_key_file: Path
    known_hosts_file: Path


class StoreSection(Section):
    """Where the overnight copies, images and journals live on the GBS server."""

    path: AbsolutePath
    reserve_bytes: int = Field(2 << 30, ge=0, description="Free space that a run must leave.")
    max_images: int = Field(4, ge=1, description="So many images are taken at once, of all KVM hosts together.")


class PermanentSection(Section):
    """Where history lives: a remote site's NFSv4 export, or a local folder by choice."""

    path: AbsolutePath = Field(description="The mount point, or the folder.")
    store_id: Name = Field(description="What the marker file .gbs-store must say.")
    kind: Literal["nfs4", "local"] = "nfs4"
    export: str | None = Field(None, pattern=r"^[^-\s]\S*:/\S*$", description="server:/path of the NFSv4 export.")

    @model_validator(mode="after")
    def _export_fits_kind(self) -> Self:
        if (self.kind == "nfs4") != (self.export is not None):
            raise ValueError("kind nfs4 needs export (server:/path); kind local has none")
        return self


class Policy(Section):
    """How often, how long, how careful. The default policy suits most clients."""

    image_method: WantedMethod = Field(
        "auto", description="How images are taken: auto is the backup API where a trial shows it, else SnapLive."
    )
    image_max_age_days: int = Field(90, ge=1, description="A VM's image older than this is taken again.")
    daily: int = Field(14, ge=2)
    weekly: int = Field(4, ge=0)
    monthly: int = Field(3, ge=0)
    max_shrink_percent: int = Field(50, ge=1, le=100, description="Refuse a night that lost more files or bytes.")
    transfer_deadline_s: int = Field(6 * 3600, ge=60)
    dump_deadline_s: int = Field(3600, ge=10)
    shutdown_deadline_s: int = Field(300, ge=1, description="How long a guest may take to shut down (method offline).")
    force_shutdown: bool = Field(False, description="Cut the power of a guest that does not shut down in time.")
    max_window_s: int = Field(4 * 3600, ge=60, description="How long a VM may run on overlays (method snaplive).")
    bandwidth_limit_kib_s: int | None = Field(
        None, ge=1, description="So many KiB/s at most, of each image and each client."
    )
    freeze_deadline_s: int = Field(10, ge=1, description="How long a guest may take to freeze its file systems.")

    @property
    def bytes_per_s(self) -> int | None:
        """The limit of bandwidth in bytes."""
        return self.bandwidth_limit_kib_s * 1024 if self.bandwidth_limit_kib_s else None

    @property
    def retain(self) -> tuple[Retain, ...]:
        """rsnapshot's intervals, from the most to the least frequent."""
        counts = {"daily": self.daily, "weekly": self.weekly, "monthly": self.monthly}
        return tuple(Retain(interval, count) for interval, count in counts.items() if count)

    @model_validator(mode="after")
    def _cascade(self) -> Self:
        if self.monthly and not self.weekly:
            raise ValueError("monthly points are taken from weekly ones: weekly must not be 0")
        return self


class Hook(Section):
    """What is run on the client around a stage: an application is frozen before it and let go after it."""

    stage: Literal["prepare", "overnight"]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = Field((), description="Runs whatever happened, once before was begun.")
    deadline_s: int = Field(300, ge=1)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.before and not self.after:
            raise ValueError("a hook needs before or after")
        return self


class Probe(Section):
    """What proves that a recovered VM works: a command that must exit 0 in it, or a TCP port that must answer."""

    command: tuple[str, ...] = ()
    tcp: Port | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if bool(self.command) == (self.tcp is not None):
            raise ValueError("a probe is either a command or a tcp port")
        return self

    @property
    def words(self) -> str:
        """What operators read for it."""
        return " ".join(self.command) or f"tcp port {self.tcp}"


class System(Section):
    """A system whose files we pull over ssh."""

    address: Address
    port: Port = 22
    identity: Name = "default"
    files_identity: Name | None = Field(
        None, description="Whose key pulls the files (restricted to that, if you like); as identity when missing."
    )
    policy: Name = "default"
    platform: Platform = Platform.LINUX
    paths: tuple[AbsolutePath, ...] = Field((), description="What to pull; every local file system when empty.")
    exclude: tuple[str, ...] = Field((), description="rsync patterns, anchored at the client's root by a leading /.")
    databases: tuple[Database, ...] = ()
    hooks: tuple[Hook, ...] = ()
    dump_folder: AbsolutePath = "/var/backups/gbs"
    snapshot: WantedSnapshot = Field(
        "none", description="Pull the files from read-only snapshots, made for the transfer; auto takes lvm and btrfs."
    )
    snapshot_room_percent: int = Field(
        10, ge=1, le=100, description="Of an LVM volume's size, how much may be overwritten during the transfer."
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for pattern in self.exclude:
            if not pattern or "\n" in pattern or not pattern.strip("/*") or pattern == "!":
                raise ValueError(f"exclude {pattern!r} would leave out everything or nothing")
        called = [database.called for database in self.databases]
        if len(set(called)) != len(called):
            raise ValueError("each database engine may stand once, and each command by its name")
        return self


class Client(System):
    """A client; `vm` names the VM that it is, if it is one."""

    vm: Name | None = None
    probes: tuple[Probe, ...] = ()
    boot_deadline_s: int = Field(600, ge=10, description="How long a recovered VM may take until ssh answers.")


class KvmHost(System):
    """A KVM host: a client too, whose libvirt runs the VMs."""

    libvirt_uri: str = Field("qemu:///system", pattern=r"^qemu:///(system|session|embed.*)$")
    max_images: int = Field(2, ge=1, description="So many images of its VMs are taken at once.")
    image_folder: AbsolutePath = "/var/lib/libvirt/images"
    definitions: AbsolutePath = Field("/etc/libvirt/qemu", description="Where its libvirt keeps the VMs' XML.")


def _shorthand(value: Any) -> Any:
    return {"address": value} if isinstance(value, str) else value


class Inventory(Section):
    """Everything that one GBS server protects."""

    site: Name = "main"
    store: StoreSection
    permanent: PermanentSection
    identities: dict[Name, Identity] = Field(min_length=1)
    policies: dict[Name, Policy] = Field(default_factory=dict)
    kvm_hosts: dict[Name, Annotated[KvmHost, BeforeValidator(_shorthand)]] = Field(default_factory=dict)
    clients: dict[Name, Annotated[Client, BeforeValidator(_shorthand)]] = Field(default_factory=dict)
    logins: dict[Name, Login] = Field(default_factory=dict)
    devices: dict[Name, Device] = Field(default_factory=dict)

    @property
    def systems(self) -> dict[str, System]:
        """Everything whose files are pulled: KVM hosts first, because VMs are found in their backup data."""
        return {**self.kvm_hosts, **self.clients}

    @property
    def vms(self) -> dict[str, str]:
        """The VMs that are declared: VM name → client name."""
        return {client.vm: name for name, client in self.clients.items() if client.vm}

    def policy_of(self, system: System) -> Policy:
        """The policy of a system; the built-in one when none is declared."""
        return self.policies.get(system.policy, Policy())

    def mistakes(self) -> list[tuple[tuple[str, ...], str]]:
        """What is wrong between sections: (path in the file, problem). Empty when the inventory holds together."""
        return [*self._unknown_references(), *self._devices(), *self._clashes(), *self._overlaps()]

    def _unknown_references(self) -> list[tuple[tuple[str, ...], str]]:
        found: list[tuple[tuple[str, ...], str]] = []
        for section, systems in (("kvm_hosts", self.kvm_hosts), ("clients", self.clients)):
            for name, system in systems.items():
                for field in ("identity", "files_identity"):
                    asked = getattr(system, field)
                    if asked is not None and asked not in self.identities:
                        known = ", ".join(self.identities)
                        found.append(((section, name, field), f"no identity {asked!r}; known are {known}"))
                if system.policy not in self.policies and system.policy != "default":
                    known = ", ".join(self.policies) or "default"
                    found.append(((section, name, "policy"), f"no policy {system.policy!r}; known are {known}"))
        return found

    def _devices(self) -> list[tuple[tuple[str, ...], str]]:
        found: list[tuple[tuple[str, ...], str]] = []
        slugs: dict[str, str] = {}
        for name, device in self.devices.items():
            if device.login not in self.logins:
                known = ", ".join(self.logins) or "none"
                found.append((("devices", name, "login"), f"no login {device.login!r}; known are {known}"))
            if slugs.setdefault(slug(name), name) != name:
                found.append((("devices", name), f"shares its folder with {slugs[slug(name)]!r}"))
            if name in self.systems:
                found.append((("devices", name), "a client or KVM host has the same name"))
        return found

    def _clashes(self) -> list[tuple[tuple[str, ...], str]]:
        found: list[tuple[tuple[str, ...], str]] = []
        for name in self.clients:
            if name in self.kvm_hosts:
                found.append((("clients", name), "a KVM host has the same name; each is backed up under its name"))
        slugs: dict[str, str] = {}
        for name in self.systems:
            if slugs.setdefault(slug(name), name) != name:
                found.append((("clients", name), f"shares its folder with {slugs[slug(name)]!r}"))
        vms: dict[str, str] = {}
        for name, client in self.clients.items():
            if client.vm and vms.setdefault(client.vm, name) != name:
                found.append((("clients", name, "vm"), f"VM {client.vm!r} is already client {vms[client.vm]!r}"))
        return found

    def _overlaps(self) -> list[tuple[tuple[str, ...], str]]:
        store, permanent = PurePosixPath(self.store.path), PurePosixPath(self.permanent.path)
        if store == permanent or store in permanent.parents or permanent in store.parents:
            return [(("permanent", "path"), f"overlaps the store {store}: history must not lie inside what it copies")]
        return []
