"""The inventory: the one declaration of what is protected and how. Small by default, unknown keys are errors."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tasks.model.anomaly import Figure
from tasks.model.image_method import WantedMethod
from tasks.model.inventory_devices import Device, Login
from tasks.model.inventory_engines import RSNAPSHOT, Engine, login_in
from tasks.model.inventory_fields import AbsolutePath, Name, Section, User
from tasks.model.inventory_systems import Client, KvmHost, System
from tasks.model.mountinfo import SOFT
from tasks.model.names import slug
from tasks.model.retention import Retain, Rules


class Identity(Section):
    """Who we are to a system over ssh: a user and the files of its key and of the host keys that we trust."""

    user: User = "root"
    private_key_file: Path
    known_hosts_file: Path


class StoreSection(Section):
    """Where the overnight copies, images and journals live on the GBS server."""

    path: AbsolutePath
    reserve_bytes: int = Field(2 << 30, ge=0, description="Free space that a run must leave.")
    fake_super: bool = Field(
        False,
        description="Keep owners, devices and xattrs in an xattr of rsync's, where the store cannot have them.",
    )
    max_images: int = Field(4, ge=1, description="So many images are taken at once, of all KVM hosts together.")


class PermanentSection(Section):
    """Where history lives: a remote site's NFSv4 export, or a local folder by choice."""

    path: AbsolutePath = Field(description="The mount point, or the folder.")
    store_id: Name = Field(description="What the marker file .gbs-store must say.")
    kind: Literal["nfs4", "local"] = "nfs4"
    export: str | None = Field(None, pattern=r"^[^-\s]\S*:/\S*$", description="server:/path of the NFSv4 export.")
    mount_options: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9_=.:,-]*$",
        description="With these GBS mounts the export when nothing is mounted; without, it only checks. Try vers=4.2.",
    )

    @model_validator(mode="after")
    def _export_fits_kind(self) -> Self:
        if (self.kind == "nfs4") != (self.export is not None):
            raise ValueError("kind nfs4 needs export (server:/path); kind local has none")
        if self.kind == "local" and self.mount_options is not None:
            raise ValueError("kind local is not mounted: leave mount_options out")
        if SOFT & {*(self.mount_options or "").split(",")}:
            raise ValueError("a soft mount may lose writes without a word: use hard, which is the default (nfs(5))")
        return self


class ServerSection(Section):
    """The GBS server itself: what it is rebuilt from is gathered every night, and kept in both stores."""

    recovery_set: bool = Field(True, description="Whether it is gathered at all.")
    recovery_keys: tuple[Annotated[str, Field(pattern=r"^age1[0-9a-z]{58}$")], ...] = Field(
        (),
        description="Public keys of age-keygen(1): secrets are sealed for them. Keep their other halves elsewhere.",
    )
    prefect_database: str | None = Field(
        None,
        pattern=r"^(/\S+|service=[A-Za-z0-9_.-]+)$",
        description="Prefect's database: its SQLite file, or service=NAME of pg_service.conf. Default: the file here.",
    )
    also: tuple[AbsolutePath, ...] = Field((), description="More files of this server that are sealed with its keys.")
    keep: int = Field(14, ge=1, description="So many recovery sets are kept.")


class Policy(Section):
    """How often, how long, how careful. The default policy suits most clients."""

    image_method: WantedMethod = Field(
        "auto", description="How images are taken: auto is the backup API where a trial shows it, else SnapLive."
    )
    image_max_age_days: int = Field(90, ge=1, description="A VM's image older than this is taken again.")
    image_replicas: int = Field(
        3, ge=1, description="So many sound replicas of a VM's images are kept in the permanent store."
    )
    engine: Name = Field(RSNAPSHOT, description="What keeps the restore points: rsnapshot, or one of `engines`.")
    daily: int = Field(14, ge=2)
    weekly: int = Field(4, ge=0)
    monthly: int = Field(3, ge=0)
    least: int = Field(2, ge=1, description="Never fewer restore points that can be recovered from, whatever happens.")
    trash_days: int = Field(
        3, ge=0, description="How long a restore point or a replica that was given up can still be had back."
    )
    max_shrink_percent: int = Field(50, ge=1, le=100, description="Refuse a night that lost more files or bytes.")
    max_change_percent: int = Field(
        80, ge=1, le=100, description="Warn of a night that rewrote more of its files, hold one whose files differ."
    )
    max_deleted_percent: int = Field(30, ge=1, le=100, description="Hold a night that lost more of its files.")
    max_scrambled_percent: int = Field(
        5, ge=1, le=100, description="Hold a night in which more of its files, plain before, look encrypted."
    )
    brake: Literal["hold", "warn", "off"] = Field(
        "hold", description="What is done with a night that is not like the client's others."
    )
    held_nights: int = Field(2, ge=2, description="So many are kept of a client: the first one, and the newest.")
    transfer_deadline_s: int = Field(6 * 3600, ge=60)
    dump_deadline_s: int = Field(3600, ge=10)
    shutdown_deadline_s: int = Field(300, ge=1, description="How long a guest may take to shut down (method offline).")
    force_shutdown: bool = Field(False, description="Cut the power of a guest that does not shut down in time.")
    max_window_s: int = Field(4 * 3600, ge=60, description="How long a VM may run on overlays (method snaplive).")
    bandwidth_limit_kib_s: int | None = Field(
        None, ge=1, description="So many KiB/s at most, of each image and each client."
    )
    drill_days: int = Field(
        0, ge=0, description="Each VM is drilled once in so many days, a few a night; 0 is only when asked for."
    )
    freeze_deadline_s: int = Field(10, ge=1, description="How long a guest may take to freeze its file systems.")

    @property
    def bytes_per_s(self) -> int | None:
        """The limit of bandwidth in bytes."""
        return self.bandwidth_limit_kib_s * 1024 if self.bandwidth_limit_kib_s else None

    @property
    def rules(self) -> Rules:
        """Which restore points are kept, in rsnapshot's intervals, from the most to the least frequent."""
        counts = {"daily": self.daily, "weekly": self.weekly, "monthly": self.monthly}
        return Rules(tuple(Retain(interval, count) for interval, count in counts.items() if count), self.least)

    @property
    def ceilings(self) -> dict[Figure, float]:
        """How much of a client a night may change, in percent, whatever is usual for it."""
        return {
            Figure.SCRAMBLED: self.max_scrambled_percent,
            Figure.CHANGED: self.max_change_percent,
            Figure.DELETED: self.max_deleted_percent,
            Figure.SHRUNK: self.max_shrink_percent,
        }

    @model_validator(mode="after")
    def _cascade(self) -> Self:
        if self.monthly and not self.weekly:
            raise ValueError("monthly points are taken from weekly ones: weekly must not be 0")
        if self.daily + self.weekly + self.monthly < self.least:
            raise ValueError(f"daily, weekly and monthly are fewer together than the least, {self.least}")
        return self


def _shorthand(value: Any) -> Any:
    return {"address": value} if isinstance(value, str) else value


class Inventory(Section):
    """Everything that one GBS server protects."""

    site: Name = "main"
    store: StoreSection
    permanent: PermanentSection
    server: ServerSection = ServerSection()
    identities: dict[Name, Identity] = Field(min_length=1)
    policies: dict[Name, Policy] = Field(default_factory=dict)
    engines: dict[Name, Engine] = Field(default_factory=dict)
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

    def policy_of_vm(self, vm: str) -> Policy:
        """The policy of the client that a VM is; the built-in one for a VM that no client names."""
        client = self.vms.get(vm)
        return self.policy_of(self.clients[client]) if client else Policy()

    def mistakes(self) -> list[tuple[tuple[str, ...], str]]:
        """What is wrong between sections: (path in the file, problem). Empty when the inventory holds together."""
        return [
            *(*self._unknown_references(), *self._engines(), *self._devices(), *self._clashes(), *self._overlaps()),
        ]

    def _engines(self) -> list[tuple[tuple[str, ...], str]]:
        found: list[tuple[tuple[str, ...], str]] = []
        if RSNAPSHOT in self.engines:
            found.append((("engines", RSNAPSHOT), "rsnapshot needs no declaration: give this one another name"))
        for name, policy in self.policies.items():
            if policy.engine not in (RSNAPSHOT, *self.engines):
                known = ", ".join((RSNAPSHOT, *self.engines))
                found.append((("policies", name, "engine"), f"no engine {policy.engine!r}; known are {known}"))
        store = PurePosixPath(self.store.path)
        for name, engine in self.engines.items():
            repository = (engine.restic.repository if engine.restic else None) or ""
            where = ("engines", name, "restic", "repository")
            if login_in(repository):  # told here, as what validates shows the value
                found.append((where, "a login is a secret: put it into environment_file"))
            if store in PurePosixPath(repository).parents:
                found.append((where, f"lies in the store {store}: history must not lie inside what it copies"))
        return found

    def _unknown_references(self) -> list[tuple[tuple[str, ...], str]]:
        found: list[tuple[tuple[str, ...], str]] = []
        for section, systems in (("kvm_hosts", self.kvm_hosts), ("clients", self.clients)):
            for name, system in systems.items():
                for field in ("identity", "files_identity", "recovery_identity"):
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
