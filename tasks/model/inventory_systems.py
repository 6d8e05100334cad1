"""What the inventory says of the systems whose files we pull: clients, and KVM hosts, which are clients too."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from tasks.model.client_snapshot import WantedSnapshot
from tasks.model.inventory_databases import Database
from tasks.model.inventory_fields import AbsolutePath, Address, Name, Port, Section, User
from tasks.model.platform import PROFILES, Platform, Profile, Transport


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


_TCP = 'exec 3<>"/dev/tcp/127.0.0.1/$1"'
"""A port of the system itself answers."""


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

    @property
    def argv(self) -> tuple[str, ...]:
        """What is run in the VM, and exits 0 when it holds."""
        return self.command or ("bash", "-c", _TCP, "gbs", str(self.tcp))


class Daemon(Section):
    """An rsync daemon on a client: its module must begin at the client's root."""

    module: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    port: Port = 873
    user: User | None = None
    password_file: Path | None = Field(None, description="A file of the GBS server that only root can read.")

    @model_validator(mode="after")
    def _login(self) -> Self:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file belong together")
        return self


class System(Section):
    """A system whose files we pull."""

    address: Address
    port: Port = 22
    identity: Name = "default"
    files_identity: Name | None = Field(
        None, description="Whose key pulls the files (restricted to that, if you like); as identity when missing."
    )
    recovery_identity: Name | None = Field(
        None, description="Whose key writes recovered files and databases back; as identity when missing."
    )
    policy: Name = "default"
    platform: Platform = Platform.LINUX
    ssh: bool = Field(True, description="Whether commands run on it over ssh: facts, dumps and hooks need that.")
    transport: Transport | None = Field(None, description="How files come from it; the platform's own when missing.")
    daemon: Daemon | None = Field(None, description="Its rsync daemon (transport rsync-daemon).")
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

    @property
    def profile(self) -> Profile:
        """What GBS knows of its platform."""
        return PROFILES[self.platform]

    @property
    def by(self) -> Transport:
        """How its files come."""
        return self.transport or self.profile.transports[0]

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for pattern in self.exclude:
            if not pattern or "\n" in pattern or not pattern.strip("/*") or pattern == "!":
                raise ValueError(f"exclude {pattern!r} would leave out everything or nothing")
        called = [database.called for database in self.databases]
        if len(set(called)) != len(called):
            raise ValueError("each database engine may stand once, and each command by its name")
        return self

    @model_validator(mode="after")
    def _possible(self) -> Self:
        title, known = self.profile.title, self.profile.transports
        linux = self.platform is Platform.LINUX
        if self.by not in known:
            raise ValueError(f"files of {title} come by {' or '.join(known)}, not by {self.by}")
        if (self.by is Transport.DAEMON) != (self.daemon is not None):
            raise ValueError("transport rsync-daemon needs daemon (module), and no other has one")
        if not self.ssh and (self.by is not Transport.DAEMON or self.databases or self.hooks):
            raise ValueError("without ssh there are no dumps and no hooks, and files come by rsync-daemon only")
        if not self.paths and not (linux and self.ssh):
            raise ValueError(f"paths must be stated: the file systems of {title if self.ssh else 'it'} are not listed")
        if self.databases and not linux:
            raise ValueError(f"databases are dumped on Linux only: on {title} let a hook leave dumps in one of paths")
        if self.snapshot != "none" and not (linux and self.by is Transport.SSH):
            raise ValueError("snapshots are made on Linux, of clients whose files come by ssh")
        if self.by is Transport.SAVESET and self.exclude:
            raise ValueError("a saveset leaves nothing out: state its paths more closely")
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

    @model_validator(mode="after")
    def _linux(self) -> Self:
        if self.platform is not Platform.LINUX or not self.ssh:
            raise ValueError("a KVM host is a Linux system that is reached over ssh")
        return self
