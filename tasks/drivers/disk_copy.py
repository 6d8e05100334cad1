"""Disks that lie still, copied from their host: each becomes one whole raw file and a listing of its chunks."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.drivers import disk_server, nbd, qemu_img
from tasks.drivers.chunks import SUFFIX
from tasks.drivers.disk_sources import DiskSource
from tasks.drivers.host_shell import HostShell
from tasks.drivers.progress import reporting
from tasks.model.image_method import Wishes
from tasks.model.image_taken import TakenDisk
from tasks.model.ssh_target import SshTarget
from tasks.model.window import PlannedDisk

log = logging.getLogger(__name__)
StillDisk = DiskSource | PlannedDisk


def copy(
    shell: HostShell,
    target: SshTarget,
    vm: str,
    disks: Sequence[StillDisk],
    folder: Path,
    wishes: Wishes,
    watch: Callable[[], None] | None = None,
) -> int:
    """Copy the disks into `folder`; the bytes that travelled, which are what was ever written.

    Raises IntegrityError when qemu-img finds a disk unsound on its host, CommandFailed when a transfer breaks.
    """
    for disk in disks:
        for layer in disk.layers:
            qemu_img.check(shell, layer.path, layer.format, deadline_s=wishes.transfer_deadline_s, shared=True)
    moved = 0
    with disk_server.served(target, {disk.target: disk.layers for disk in disks}) as sockets:
        for disk in disks:
            file = folder / taken(disk).file
            file.unlink(missing_ok=True)
            file.touch()
            with reporting(log, f"copy {vm} {disk.target}") as progress:
                moved += nbd.pull(
                    sockets[disk.target],
                    "",
                    file,
                    disk.virtual_size_bytes,
                    bitmap=None,
                    chunks=file.with_name(file.name + SUFFIX),
                    parent_chunks=None,
                    deadline_s=wishes.transfer_deadline_s,
                    bytes_per_s=wishes.bytes_per_s,
                    on_progress=progress.update,
                    watch=watch,
                )
    return moved


def taken(disk: StillDisk) -> TakenDisk:
    """What the manifest says of a disk that was copied so."""
    top = disk.layers[0]
    return TakenDisk(
        target=disk.target,
        source=top.path,
        source_format=top.format,
        source_kind=top.kind,
        volume=disk.volume,
        virtual_size_bytes=disk.virtual_size_bytes,
        options=disk.options,
    )
