"""Where the disks of a VM lie on its host: the path of each, and all that it lies on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import libvirt

from tasks.drivers import qemu_img
from tasks.drivers.host_shell import HostShell, run_each
from tasks.drivers.libvirt_host import HostDomain
from tasks.drivers.qemu_img import ImageInfo
from tasks.errors import UnsupportedDisk
from tasks.model.domain_xml import Disk
from tasks.model.window import Layer

DEADLINE_S = 60
MAX_DEPTH = 64
_BLOCK = (libvirt.VIR_STORAGE_VOL_BLOCK, libvirt.VIR_STORAGE_VOL_PLOOP)
_BASE_KIND = 'if [ -b "$1" ]; then echo block; elif [ -f "$1" ]; then echo file; else echo other; fi'


@dataclass(frozen=True)
class DiskSource:
    """A disk as its host has it: the layers of its chain, topmost first, and what the topmost one's header says."""

    target: str
    layers: tuple[Layer, ...]
    virtual_size_bytes: int
    allocated_bytes: int
    """What the layers take on the host's disks; all of a block device."""
    keeps_bitmaps: bool
    volume: str = ""
    """`POOL/VOLUME` where the definition names it so."""
    options: tuple[str, ...] = ()
    """What its qcow2 file was created with, as `qemu-img create -o` takes it."""

    @property
    def path(self) -> str:
        """The file or device that the VM writes to."""
        return self.layers[0].path

    @property
    def kind(self) -> Literal["file", "block"]:
        """What `path` is."""
        return self.layers[0].kind


def find(shell: HostShell, domain: HostDomain, disks: Sequence[Disk], *, shared: bool) -> list[DiskSource]:
    """Where these disks lie, asked from libvirt's pools and from the headers of the images; a round trip per layer.

    The format of each disk is the definition's, that of a backing file its image's header's: neither is ever guessed.
    With `shared` also while the VM runs. Raises UnsupportedDisk for what cannot be read or copied.
    """
    chains = [[_top(domain, disk)] for disk in disks]
    headers: list[list[ImageInfo]] = [[] for _ in disks]
    while wanted := [index for index, chain in enumerate(chains) if len(headers[index]) < len(chain)]:
        tops = [chains[index][-1] for index in wanted]
        commands = [qemu_img.info_argv(layer.path, layer.format, shared=shared) for layer in tops]
        for index, said in zip(wanted, run_each(shell, commands, deadline_s=DEADLINE_S), strict=True):
            layer = chains[index][-1]
            found = qemu_img.parse_info(said, layer.path, layer.format)
            headers[index].append(found)
            _require_readable(domain.name, disks[index].target, found)
            if found.backing is not None:
                chains[index].append(_below(shell, domain.name, disks[index].target, found, len(chains[index])))
    return [
        DiskSource(
            target=disk.target,
            layers=tuple(chain),
            virtual_size_bytes=found[0].virtual_size_bytes,
            allocated_bytes=sum(map(_allocated, chain, found)),
            keeps_bitmaps=found[0].keeps_bitmaps,
            volume=str(disk.source) if disk.type == "volume" else "",
            options=found[0].options,
        )
        for disk, chain, found in zip(disks, chains, headers, strict=True)
    ]


def _allocated(layer: Layer, header: ImageInfo) -> int:
    return header.virtual_size_bytes if layer.kind == "block" else header.allocated_bytes


def _top(domain: HostDomain, disk: Disk) -> Layer:
    image_format: Literal["qcow2", "raw"] = "raw" if disk.format == "raw" else "qcow2"
    if disk.type != "volume":
        return Layer(path=str(disk.source), format=image_format, kind="block" if disk.type == "block" else "file")
    pool, _, volume = str(disk.source).partition("/")

    def look_up() -> tuple[str, int]:
        found = domain.host.connection.storagePoolLookupByName(pool).storageVolLookupByName(volume)
        return str(found.path()), int(found.info()[0])

    path, kind = domain.host.call(f"look up volume {disk.source} of", domain.name, look_up)
    return Layer(path=path, format=image_format, kind="block" if kind in _BLOCK else "file")


def _require_readable(vm: str, target: str, header: ImageInfo) -> None:
    for refused, reason in ((header.data_file is not None, "has a data file"), (header.encrypted, "is encrypted")):
        if refused:
            raise UnsupportedDisk(vm, target, f"{header.path} {reason}")


def _below(shell: HostShell, vm: str, target: str, header: ImageInfo, depth: int) -> Layer:
    """The layer that an image's header names as its backing file."""
    path, image_format = str(header.backing), header.backing_format
    lies = f"{header.path} lies on {path}"
    if image_format not in ("qcow2", "raw"):
        stated = (
            f"its format is {image_format!r}" if image_format else "its format is not stated: qemu-img rebase -u -F"
        )
        raise UnsupportedDisk(vm, target, f"{lies}: {stated}")
    if not path.startswith("/") or depth > MAX_DEPTH:
        raise UnsupportedDisk(vm, target, f"{lies}, layer {depth} of its chain")
    argv = ["sh", "-c", _BASE_KIND, "sh", path]
    found = shell.run(argv, deadline_s=DEADLINE_S, name=f"look at {path}").stdout.strip()
    if found not in ("file", "block"):
        raise UnsupportedDisk(vm, target, f"{lies}, which is no file or block device")
    kind: Literal["file", "block"] = "block" if found == "block" else "file"
    return Layer(path=path, format="raw" if image_format == "raw" else "qcow2", kind=kind)
