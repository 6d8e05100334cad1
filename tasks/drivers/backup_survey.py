"""What has to be known before a backup job: the disks as they are now, room for scratch files, a sound parent."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import libvirt

from tasks.drivers import host_files, qemu_img
from tasks.drivers.digest import sha256_file
from tasks.drivers.host_shell import HostShell, run_each
from tasks.drivers.libvirt_host import HostDomain
from tasks.errors import HypervisorError, StoreFull
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
    selection: Selection
    has_agent: bool
    qemu_folder: str
    """libvirt's own folder of this run of the VM: QEMU may make a socket there under any confinement."""
    boot_id: str

    @property
    def folders(self) -> list[str]:
        """Where the disks lie on the host, and so their scratch files."""
        return [folder_of(disk.source) for disk in self.disks]


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


def survey(shell: HostShell, domain: HostDomain, min_free_bytes: int) -> Survey:
    """Ask the host about the disks of a running VM in one round trip.

    Raises HypervisorError when it does not run, UnsupportedDisk, StoreFull when there is no room for scratch files.
    """
    state, _ = domain.state()
    if state not in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED):
        raise HypervisorError(domain.name, "a backup", "the VM does not run; take its image offline")
    description = parse_domain(domain.xml())
    selection = select_disks(description, overlays=False)
    number = domain.call("ask for its number", lambda handle: int(handle.ID()))
    commands: list[Sequence[str]] = [["sh", "-c", _FOLDER, "sh", str(number)], host_files.BOOT_ID_ARGV]
    for disk in selection.taken:
        commands.append(qemu_img.info_argv(str(disk.source), str(disk.format), shared=True))
        commands.append(host_files.free_space_argv(folder_of(str(disk.source))))
    folder, boot_id, *answers = run_each(shell, commands, deadline_s=DEADLINE_S)
    if not folder.stdout:
        raise HypervisorError(domain.name, "a backup", "libvirt's folder of the running VM was not found")
    disks = []
    for index, disk in enumerate(selection.taken):
        source = str(disk.source)
        found = qemu_img.parse_info(answers[2 * index], source, str(disk.format))
        free = host_files.parse_free_space(answers[2 * index + 1], source)
        if free.size_bytes < min_free_bytes:
            raise StoreFull(f"{folder_of(source)} (scratch files of VM {domain.name})", min_free_bytes, free.size_bytes)
        disks.append(DiskNow(disk.target, source, found.virtual_size_bytes, found.keeps_bitmaps))
    return Survey(tuple(disks), selection, description.guest_agent, folder.stdout, boot_id.stdout.strip())


def plan(survey: Survey, parent: Parent | None, checkpoints: Sequence[str], *, full: bool) -> dict[str, DiskPlan]:
    """How each disk is copied; a disk whose parent is damaged is copied whole."""
    plans = dict(plan_increment(parent.image if parent else None, survey.disks, checkpoints, full=full))
    for target, planned in plans.items():
        if planned.since and parent and (damage := parent.damage(target)) is not None:
            plans[target] = DiskPlan(None, damage)
    return plans


def folder_of(path: str) -> str:
    """The folder of an absolute path of the host."""
    return path.rpartition("/")[0] or "/"
