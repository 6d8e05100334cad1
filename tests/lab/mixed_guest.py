"""A tiny guest with a disk of each kind: a qcow2 chain of two files, a block device, a volume of a storage pool."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

from tests.lab.tiny_guest import Disk, TinyGuest, make_disk

FOLDER = "/var/lib/libvirt/images"


@dataclasses.dataclass
class MixedGuest(TinyGuest):
    """vda lies on a base image, vdb is a loop device, vdc the volume `<name>-vdc.qcow2` of the pool `<name>-pool`."""

    disk_count: int = 3
    loop: str = ""

    @property
    def disks(self) -> list[Disk]:
        """Its disks, by the host's paths."""
        return [
            Disk("vda", "qcow2", f"{FOLDER}/{self.name}-vda.qcow2"),
            Disk("vdb", "raw", self.loop),
            Disk("vdc", "qcow2", f"{FOLDER}/{self.name}-vdc.qcow2"),
        ]

    def outside(self, path: str) -> Path:
        """Where the machine sees a file or device of the host."""
        return Path(path) if path.startswith("/dev/") else super().outside(path)

    def define(self) -> None:
        """Make its disks and define it."""
        images, name, size = self.host.images, self.name, self.size_bytes
        make_disk(images / f"{name}-base.qcow2", "qcow2", size, writes=self.writes)
        # The name of the base is relative, as virt-manager and others write it.
        script = (
            'cd "$1" && qemu-img create -q -f qcow2 -o cluster_size=128k -b "$2-base.qcow2" -F qcow2 "$2-vda.qcow2"'
        )
        self.host.run(["sh", "-c", script, "sh", FOLDER, name])
        make_disk(images / f"{name}-vdb.raw", "raw", size, writes=self.writes)
        argv = ["losetup", "--find", "--show", str(images / f"{name}-vdb.raw")]
        self.loop = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
        make_disk(images / f"{name}-vdc.qcow2", "qcow2", size, writes=self.writes)
        self.host.virsh("pool-define-as", f"{name}-pool", "dir", "--target", FOLDER)
        self.host.virsh("pool-start", f"{name}-pool")
        self.host.virsh("define", "/dev/stdin", input_text=self.domain_xml())

    def destroy(self) -> None:
        """End it, undefine it and remove what it was made with."""
        self.host.run(["virsh", "-q", "destroy", self.name], check=False)
        self.host.run(["virsh", "-q", "undefine", self.name, "--checkpoints-metadata"], check=False)
        for verb in ("pool-destroy", "pool-undefine"):
            self.host.run(["virsh", "-q", verb, f"{self.name}-pool"], check=False)
        if self.loop:
            subprocess.run(["losetup", "--detach", self.loop], check=False)
        for path in self.host.images.glob(f"{self.name}-*"):
            path.unlink()

    def domain_xml(self) -> str:
        """Its libvirt definition."""
        text = super().domain_xml()
        for path, kind, source in (
            (self.loop, "block", f"dev='{self.loop}'"),
            (f"{FOLDER}/{self.name}-vdc.qcow2", "volume", f"pool='{self.name}-pool' volume='{self.name}-vdc.qcow2'"),
        ):
            before = r"<disk type='file'( device='disk'>[^<]*<driver[^>]*>[^<]*)"
            text = re.sub(f'{before}<source file="{path}"/>', rf"<disk type='{kind}'\1<source {source}/>", text)
        return text
