"""What a runbook is made of: what a VM is brought back from by hand, and where to."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tasks.model.facts import Facts
from tasks.model.inventory_systems import Probe
from tasks.model.manifest import DiskRecord, ImageManifest, NightManifest
from tasks.model.recovery import place_of, working_disks
from tasks.model.shell_text import below
from tasks.model.ssh_target import SshTarget

Root = Literal["STORE", "PERMANENT"]


@dataclass(frozen=True)
class Place:
    """A folder in one of the stores."""

    root: Root
    path: str

    @property
    def shell(self) -> str:
        """As the script names it."""
        return below(self.root, self.path)


@dataclass(frozen=True)
class Bringing:
    """How a night is brought that lies in no folder: words that name the folder it goes to by `TARGET`."""

    called: str
    argv: tuple[str, ...]
    environment_file: str | None = None
    variables: tuple[tuple[str, str], ...] = ()


TARGET = "@NIGHT@"
"""Stands in the words of `Bringing` for the folder."""


@dataclass(frozen=True)
class Restore:
    """A dump that came back with the files, and what loads it in the VM; `ready` succeeds when that can begin."""

    what: str
    path: str
    sha256: str
    argv: tuple[str, ...]
    ready: tuple[str, ...]


@dataclass(frozen=True)
class Runbook:
    """What a VM is brought back from and where to."""

    made: datetime
    vm: str
    client: str
    xml: str
    store: str
    permanent: str
    image: ImageManifest
    image_place: Place
    night: NightManifest
    night_name: str
    night_place: Place | None
    bringing: Bringing | None
    facts: Facts | None
    host: SshTarget
    libvirt_uri: str
    image_folder: str
    guest: SshTarget | None
    """None of a VM that no ssh reaches."""
    boot_deadline_s: int = 600
    restores: tuple[Restore, ...] = ()
    probes: tuple[Probe, ...] = ()
    warnings: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()
    """What else it does not do, and why."""

    @property
    def disks(self) -> tuple[tuple[DiskRecord, str], ...]:
        """The disks as the VM is to have them, and where each goes on the KVM host."""
        same = self.host.name == self.image.kvm_host
        found = working_disks(self.image)
        return tuple((disk, place_of(disk, self.vm, self.image_folder, same_host=same)) for disk in found)

    @property
    def why_no_files(self) -> str | None:
        """Why the night's files cannot be put into the disks before the VM starts; None when they can."""
        if self.facts is None:
            return "its facts are in the night that must be brought first"
        if not self.facts.file_systems:
            return f"the facts ({self.facts.os_name}) name no file systems"
        if "/" not in self.night.paths:
            return f"the night holds only {', '.join(self.night.paths)}"
        pulled = [row for row in self.facts.file_systems if row.mountpoint in self.night.paths]
        if nameless := [row.mountpoint for row in pulled if not row.uuid]:
            return f"the facts know no UUID of {', '.join(nameless)}"
        if self.facts.luks_devices:
            return "a disk is encrypted (LUKS), and no key is in any backup"
        return None
