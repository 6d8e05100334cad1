"""What has to be known before a backup job: the disks as they are now, room for scratch files, a sound parent."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import libvirt

from tasks.drivers import disk_sources, host_files
from tasks.drivers.digest import sha256_file
from tasks.drivers.disk_sources import DiskSource
from tasks.drivers.host_files import folder_of
from tasks.drivers.host_shell import HostShell, run_each
from tasks.drivers.libvirt_host import HostDomain
from tasks.errors import HypervisorError
from tasks.model.domain_xml import parse_domain
from tasks.model.increment import DiskNow, DiskPlan, plan_increment
from tasks.model.manifest import ImageManifest
from tasks.model.window import Selection, select_disks

DEADLINE_S = 60
_FOLDER = 'for folder in /var/lib/libvirt/qemu/domain-"$1"-*; do [ -d "$folder" ] && printf %s "$folder" && break; done'


@dataclass(frozen=True)
class Survey:
    """A running VM before its backup."""

    disks: tuple[DiskNow, ...]
    sources: tuple[DiskSource, ...]
    beside: tuple[str, ...]
    """The path that each disk's scratch file lies beside."""
    selection: Selection
    has_agent: bool
    qemu_folder: str
    """libvirt's own folder of this run of the VM: QEMU may make a socket there under any confinement."""
    boot_id: str

    @property
    def folders(self) -> list[str]:
        """Where the scratch files lie on the host."""
        return [folder_of(path) for path in self.beside]


@dataclass(frozen=True)
class Parent:
    """The last published image of the VM and where it lies."""

    folder: Path
    image: ImageManifest

    def damage(self, target: str) -> str | None:
        """Why a disk of it cannot be cloned, as far as a look without reading the disk shows; None when it can."""
        files = {file.path: file for file in self.image.files}
        disk = next((disk for disk in self.image.disks if disk.target == target), None)
        proof = files[disk.file].chunks if disk is not None else None
        if disk is None or proof is None:
            return None
        for path, size_bytes in ((disk.file, files[disk.file].size_bytes), (proof, files[proof].size_bytes)):
            found = self.folder / path
            if not found.is_file() or found.stat().st_size != size_bytes:
                return f"{path} of image {self.image.id} is missing or has another size"
        if sha256_file(self.folder / proof) != files[proof].sha256:
            return f"{proof} of image {self.image.id} is damaged"
        return None


def survey(shell: HostShell, domain: HostDomain, image_folder: str, min_free_bytes: int) -> Survey:
    """Ask the host about the disks of a running VM; the scratch files of block devices go to `image_folder`.

    Raises HypervisorError when it does not run, UnsupportedDisk, StoreFull when there is no room for scratch files.
    """
    state, _ = domain.state()
    if state not in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED):
        raise HypervisorError(domain.name, "a backup", "the VM does not run; take its image offline")
    description = parse_domain(domain.xml())
    selection = select_disks(description)
    number = domain.call("ask for its number", lambda handle: int(handle.ID()))
    sources = disk_sources.find(shell, domain, selection.taken, shared=True)
    beside = [
        source.path if source.kind == "file" else f"{image_folder}/{domain.uuid}-{source.target}" for source in sources
    ]
    commands: list[Sequence[str]] = [["sh", "-c", _FOLDER, "sh", str(number)], host_files.BOOT_ID_ARGV]
    commands += [host_files.free_space_argv(folder_of(path)) for path in beside]
    folder, boot_id, *answers = run_each(shell, commands, deadline_s=DEADLINE_S)
    if not folder.stdout:
        raise HypervisorError(domain.name, "a backup", "libvirt's folder of the running VM was not found")
    for path, answer in zip(beside, answers, strict=True):
        what = f"{folder_of(path)} (scratch files of VM {domain.name})"
        host_files.require_free(host_files.parse_free_space(answer, path), what, min_free_bytes)
    disks = [DiskNow(source.target, source.path, source.virtual_size_bytes, source.keeps_bitmaps) for source in sources]
    return Survey(
        disks=tuple(disks),
        sources=tuple(sources),
        beside=tuple(beside),
        selection=selection,
        has_agent=description.guest_agent,
        qemu_folder=folder.stdout,
        boot_id=boot_id.stdout.strip(),
    )


def plan(survey: Survey, parent: Parent | None, checkpoints: Sequence[str], *, full: bool) -> dict[str, DiskPlan]:
    """How each disk is copied; a disk whose parent is damaged is copied whole."""
    plans = dict(plan_increment(parent.image if parent else None, survey.disks, checkpoints, full=full))
    for target, planned in plans.items():
        if planned.since and parent and (damage := parent.damage(target)) is not None:
            plans[target] = DiskPlan(None, damage)
    return plans
