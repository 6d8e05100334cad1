"""A tiny guest of which the store has an image, as a VM that runs from there."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks.drivers import instant, instant_export, qemu_img
from tasks.drivers.host_shell import LocalShell
from tasks.drivers.libvirt_host import Host
from tasks.drivers.ssh import Shell
from tasks.model.domain_recovery import rewrite_for_recovery
from tasks.model.domain_whitelist import Wishes
from tasks.model.instant import InstantDisk, InstantState, InstantVm
from tasks.model.manifest import FileRecord, ImageManifest
from tasks.model.ssh_target import SshTarget
from tasks.model.window import Layer
from tests.lab.kvm_host import KvmHost
from tests.lab.tiny_guest import TinyGuest, check_log, make_disk

SIZE_BYTES = 64 << 20
FOLDER = "/var/lib/libvirt/images"


@dataclass
class Instantly:
    """A VM of which the store has an image, and the way to its host."""

    host: Host
    shell: Shell
    target: SshTarget
    kvm: KvmHost
    record: InstantVm
    held: Path
    image: Path
    sha256: str

    @property
    def name(self) -> str:
        return self.record.vm

    def serve(self) -> None:
        instant_export.begin(self.host, self.shell, self.target, self.record, self.held)

    def start(self, *, noted: bool = True) -> None:
        """With where the disk is zero noted in its overlay, or not."""
        instant_export.launch(self.host, self.shell, self.target, self.record, self.held)
        shell, disks = LocalShell(), self.record.disks if noted else ()
        zeroes = {disk.target: qemu_img.zeroes(shell, disk.served, deadline_s=30) for disk in disks}
        self.record = instant.make_overlays(self.shell, self.record, zeroes)
        instant_export.prove(self.shell, self.record, self.held)
        instant.start(self.host, self.record)

    def keep(self) -> None:
        instant.move(self.host, self.shell, self.record)
        instant_export.end(self.held)
        instant.forget_sockets(self.shell, self.record)

    def kill_exports(self) -> None:
        """SIGKILL the server and all that it started."""
        pid = instant_export.pid_of(self.held)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self.wait_for(lambda: not instant_export.runs(self.held))

    @property
    def path(self) -> str:
        return self.record.disks[0].overlay

    @property
    def backing(self) -> str:
        return f"nbd+unix:///?socket={self.record.socket('vda')}"

    def overlay(self) -> Path:
        return self.kvm.images / Path(self.record.disks[0].overlay).name

    def state(self) -> str:
        return self.kvm.virsh("domstate", "--reason", self.name).strip()

    def wait_for(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not what():
            assert time.monotonic() < end, f"{self.name} is {self.state()}"
            time.sleep(0.1)

    def record_now(self) -> int:
        """The last record in the guest's log as QEMU reads it through the whole chain."""
        raw = self.kvm.images / f"{self.name}-log.raw"
        live = f"{FOLDER}/{self.record.disks[0].overlay.rpartition('/')[2]}"
        argv = ["qemu-img", "dd", "-U", "-f", "qcow2", "-O", "raw", "bs=32768", "skip=1", "count=129"]
        self.kvm.run([*argv, f"if={live}", f"of={FOLDER}/{raw.name}"])
        try:
            return check_log(raw.read_bytes())
        finally:
            raw.unlink()

    def assert_nothing_left(self) -> None:
        assert self.name not in self.kvm.virsh("list", "--all", "--name").split()
        assert not self.overlay().exists()
        self.assert_no_export()

    def assert_no_export(self) -> None:
        assert not self.held.exists()
        assert self.kvm.run(["test", "-e", self.record.folder], check=False).returncode != 0
        assert str(self.image) not in subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout

    def assert_image_untouched(self) -> None:
        done = subprocess.run(["sha256sum", str(self.image)], capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == self.sha256

    def tear_down(self) -> None:
        """Nothing of it is left but the image."""
        instant.remove(self.host, self.shell, self.record)
        instant_export.end(self.held)
        instant.forget_sockets(self.shell, self.record)


def make_image(
    host: Host,
    shell: Shell,
    target: SshTarget,
    kvm: KvmHost,
    parent: Path,
    *,
    writes: bool = True,
    size_bytes: int = SIZE_BYTES,
    below: str = FOLDER,
    hashed: bool = True,
) -> Instantly:
    """An image in a folder of its own below `parent`, and the record of a VM that would run from it."""
    name = f"instant-{uuid.uuid4().hex[:8]}"
    folder = parent / name
    folder.mkdir()
    image = folder / "vda.raw"
    make_disk(image, "raw", size_bytes, writes=writes)
    with image.open("r+b") as file:  # something to move, behind the log
        file.seek(16 << 20)
        file.write(os.urandom(8 << 20))
    image.chmod(0o440)
    guest = TinyGuest(kvm, name, size_bytes=size_bytes)
    ident, overlay = str(uuid.uuid4()), f"{below}/{name}-vda.qcow2"
    xml = rewrite_for_recovery(
        guest.domain_xml(),
        Wishes(
            {"vda": overlay},
            name=name,
            uuid=ident,
            domain_type="qemu" if "type='qemu'" in guest.domain_xml() else "kvm",
            formats={"vda": "qcow2"},
            run=name,
        ),
    ).xml
    disk = InstantDisk(
        target="vda",
        served=Layer(path=str(image), format="raw"),
        overlay=overlay,
        size_bytes=size_bytes,
        moved_bytes_at_most=image.stat().st_blocks * 512,
    )
    record = InstantVm(
        run=name,
        vm=name,
        uuid=ident,
        kvm_host="kvm1",
        image="image-1",
        image_folder=folder,
        night=None,
        state=InstantState.STARTING,
        started=datetime.now(UTC),
        disks=(disk,),
        xml=xml,
    )
    sha256 = hashlib.sha256(image.read_bytes()).hexdigest() if hashed else ""
    return Instantly(host, shell, target, kvm, record, folder / "export", image, sha256)


def image_manifest(vm: Instantly, source: str) -> ImageManifest:
    """The image's manifest, of a VM whose disk was the qcow2 file `source`."""
    now = datetime.now(UTC)
    disk = {"target": "vda", "file": vm.image.name, "format": "raw", "source": source, "source_format": "qcow2"}
    common = {"id": "image-1", "vm": vm.name, "uuid": vm.record.uuid, "kvm_host": "kvm1", "method": "offline"}
    common |= {"method_reason": "test", "consistency": "crash", "consistency_reason": ""}
    return ImageManifest.model_validate(
        {
            **common,
            **dict.fromkeys(("started", "ended", "instant"), now),
            **dict.fromkeys(("window_s", "copy_s", "frozen_s"), 0),
            "disks": [{**disk, "virtual_size_bytes": vm.image.stat().st_size}],
            "files": [FileRecord(path=vm.image.name, size_bytes=vm.image.stat().st_size, sha256=vm.sha256)],
        }
    )
