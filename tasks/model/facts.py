"""Facts about a client: what its own tools say of its disks, file systems, start and network on one night.

The commands and how they are put together; the parsers are in `facts_<topic>.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import Field

from tasks.model.fact import Fact, FactRow, script
from tasks.model.facts_boot import (
    LOADER_FILES,
    BootLoader,
    BootMode,
    EfiBoot,
    boot_loader,
    parse_efi_boot,
    parse_loader_files,
)
from tasks.model.facts_disks import (
    LSBLK,
    PARTITION_STARTS,
    BlockDevice,
    parse_block_devices,
    parse_partition_starts,
    with_starts,
)
from tasks.model.facts_lvm import LVM, LVS, LogicalVolume, VolumeGroup, parse_logical_volumes, parse_volume_groups
from tasks.model.facts_md import MD_ARRAYS, MdArray, parse_md_arrays
from tasks.model.facts_mounts import (
    FINDMNT,
    MOUNTS,
    REMOTE_OR_VIRTUAL,
    CrypttabEntry,
    FileSystem,
    FstabEntry,
    parse_bind_mounts,
    parse_crypttab,
    parse_file_systems,
    parse_fstab,
)
from tasks.model.facts_network import (
    INTERFACES,
    RESOLVERS,
    ROUTES,
    Interface,
    Resolvers,
    Route,
    parse_interfaces,
    parse_resolvers,
    parse_routes,
)
from tasks.model.facts_system import parse_memory, parse_os_release, parse_packages, parse_processors, parse_word


@dataclass(frozen=True)
class LuksDevice:
    """A LUKS device: what it lies on, by kernel name; `version` is 1 or 2, empty where lsblk does not tell (2.35)."""

    device: str
    uuid: str
    version: str
    size_bytes: int


class Facts(FactRow):
    """What a client was like on one night.

    None is not known: the tool is missing there or failed, or an older GBS wrote it. `unread` says of which tools the
    output could not be read.
    """

    collected: datetime
    hostname: str
    os_id: str
    os_version: str
    os_name: str
    kernel: str
    architecture: str
    boot_mode: BootMode
    boot_loader: BootLoader = "unknown"
    efi_boot: EfiBoot | None = None
    machine_id: str
    memory_bytes: int | None = None
    processors: int | None = None
    block_devices: tuple[BlockDevice, ...]
    file_systems: tuple[FileSystem, ...]
    bind_mounts: tuple[str, ...] = ()
    """Mount points that show what another mount holds."""
    fstab: tuple[FstabEntry, ...] | None = None
    crypttab: tuple[CrypttabEntry, ...] | None = None
    logical_volumes: tuple[LogicalVolume, ...] = ()
    volume_groups: tuple[VolumeGroup, ...] | None = None
    md_arrays: tuple[MdArray, ...] | None = None
    interfaces: tuple[Interface, ...] | None = None
    routes: tuple[Route, ...] | None = None
    resolvers: Resolvers | None = None
    packages: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    reports: dict[str, str] = Field(default_factory=dict)
    """What the tools of a system that is no Linux say, by topic."""

    @property
    def luks_devices(self) -> tuple[LuksDevice, ...]:
        """What is encrypted by LUKS, each device once."""
        found = {
            device.name: LuksDevice(device.name, device.uuid or "", device.fs_version or "", device.size_bytes)
            for device in self.block_devices
            if device.fstype == "crypto_LUKS"
        }
        return tuple(found.values())


FACTS: dict[str, Fact] = {
    "block_devices": Fact(script(LSBLK), parse_block_devices),
    "partition_starts": Fact(script(PARTITION_STARTS), parse_partition_starts, informative=True),
    "file_systems": Fact(
        # By type, so that the size of a file system whose server is dead is never asked for.
        ("findmnt", "-J", "-b", "-l", "-t", "no" + ",".join(sorted(REMOTE_OR_VIRTUAL)), "-o", FINDMNT),
        parse_file_systems,
    ),
    "bind_mounts": Fact(("findmnt", "-J", "-l", "-o", MOUNTS), parse_bind_mounts, informative=True),
    "fstab": Fact(script("[ ! -e /etc/fstab ] || cat /etc/fstab"), parse_fstab, informative=True),
    "crypttab": Fact(script("[ ! -e /etc/crypttab ] || cat /etc/crypttab"), parse_crypttab, informative=True),
    "logical_volumes": Fact(LVS, parse_logical_volumes, optional=True),
    "volume_groups": Fact(LVM, parse_volume_groups, informative=True),
    "md_arrays": Fact(script(MD_ARRAYS), parse_md_arrays, informative=True),
    "os_release": Fact(("cat", "/etc/os-release"), parse_os_release),
    "kernel": Fact(("uname", "-r"), parse_word),
    "architecture": Fact(("uname", "-m"), parse_word),
    "hostname": Fact(("uname", "-n"), parse_word),
    "machine_id": Fact(("cat", "/etc/machine-id"), parse_word, optional=True),
    "memory": Fact(("cat", "/proc/meminfo"), parse_memory, informative=True),
    "processors": Fact(("nproc", "--all"), parse_processors, informative=True),
    "efi": Fact(("ls", "/sys/firmware/efi"), bool, optional=True),
    "efi_boot": Fact(("efibootmgr", "-v"), parse_efi_boot, informative=True),
    "loader_files": Fact(script(LOADER_FILES), parse_loader_files, informative=True),
    "interfaces": Fact(script(INTERFACES), parse_interfaces, informative=True),
    "routes": Fact(script(ROUTES), parse_routes, informative=True),
    "resolvers": Fact(script(RESOLVERS), parse_resolvers, informative=True),
    "packages": Fact(("dpkg-query", "-W", "-f", "${Package} ${Version}\\n"), parse_packages, optional=True),
    "packages_rpm": Fact(("rpm", "-qa", "--qf", "%{NAME} %{VERSION}-%{RELEASE}\\n"), parse_packages, optional=True),
}
"""The facts of a Linux client. lsblk and findmnt speak JSON since util-linux 2.27 (2015)."""


def assemble(collected: datetime, values: Mapping[str, Any], unread: Sequence[str] = ()) -> Facts:
    """Facts from the parsed values of FACTS; those that are missing are absent from `values`."""
    release = values["os_release"]
    boot_mode: BootMode = "uefi" if values.get("efi") else "bios"
    efi_boot = values.get("efi_boot")
    return Facts(
        collected=collected,
        hostname=values["hostname"],
        os_id=release.get("ID", "unknown"),
        os_version=release.get("VERSION_ID", ""),
        os_name=release.get("PRETTY_NAME", "unknown"),
        kernel=values["kernel"],
        architecture=values["architecture"],
        boot_mode=boot_mode,
        boot_loader=boot_loader(boot_mode, values.get("loader_files", ()), efi_boot),
        efi_boot=efi_boot,
        machine_id=values.get("machine_id", ""),
        memory_bytes=values.get("memory"),
        processors=values.get("processors"),
        block_devices=with_starts(values["block_devices"], values.get("partition_starts", {})),
        file_systems=values["file_systems"],
        bind_mounts=values.get("bind_mounts", ()),
        fstab=values.get("fstab"),
        crypttab=values.get("crypttab"),
        logical_volumes=values.get("logical_volumes", ()),
        volume_groups=values.get("volume_groups"),
        md_arrays=values.get("md_arrays"),
        interfaces=values.get("interfaces"),
        routes=values.get("routes"),
        resolvers=values.get("resolvers"),
        packages=values.get("packages") or values.get("packages_rpm") or (),
        unread=tuple(unread),
    )
