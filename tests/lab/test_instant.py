"""Instant recovery on real guests: they run from the store, move to their host, and the image is never written.

Judged by virsh, qemu-img, sha256sum and the numbered log that the guest keeps writing.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tasks.drivers import instant, instant_export
from tasks.drivers.libvirt_host import Host
from tasks.drivers.ssh import Shell
from tasks.errors import HypervisorError, RecoveryRefused
from tasks.model.domain_recovery import rewrite_for_recovery
from tasks.model.instant import InstantDisk, InstantState, InstantVm
from tasks.model.ssh_target import SshTarget
from tasks.model.window import Layer
from tests.lab.kvm_host import KvmHost
from tests.lab.tiny_guest import TinyGuest, check_log, last_record, make_disk

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

    def start(self) -> None:
        instant.require_free(self.host, self.shell, self.record)
        self.serve()
        instant.start(self.host, self.shell, self.record)

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


@pytest.fixture
def instantly(
    host: Host, shell: Shell, kvm_target: SshTarget, kvm_host: KvmHost, lab_folder: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Instantly]]:
    made: list[Instantly] = []

    def make(*, writes: bool = True, size_bytes: int = SIZE_BYTES, below: str = FOLDER) -> Instantly:
        name = f"instant{os.getpid()}-{len(made)}-{uuid.uuid4().hex[:6]}"
        folder = lab_folder / name
        folder.mkdir()
        image = folder / "vda.raw"
        make_disk(image, "raw", size_bytes, writes=writes)
        with image.open("r+b") as file:  # something to move, behind the log
            file.seek(16 << 20)
            file.write(os.urandom(8 << 20))
        image.chmod(0o440)
        guest = TinyGuest(kvm_host, name, size_bytes=size_bytes)
        ident, overlay = str(uuid.uuid4()), f"{below}/{name}-vda.qcow2"
        xml = rewrite_for_recovery(
            guest.domain_xml(),
            {"vda": overlay},
            name=name,
            uuid=ident,
            domain_type="qemu" if "type='qemu'" in guest.domain_xml() else "kvm",
            formats={"vda": "qcow2"},
        ).xml
        disk = InstantDisk(
            target="vda",
            served=Layer(path=str(image), format="raw"),
            overlay=overlay,
            size_bytes=size_bytes,
            moved_bytes_at_most=image.stat().st_blocks * 512,
        )
        record = InstantVm(
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
        sha256 = hashlib.sha256(image.read_bytes()).hexdigest()
        one = Instantly(host, shell, kvm_target, kvm_host, record, folder / "export", image, sha256)
        made.append(one)
        return one

    yield make
    for one in made:
        instant.remove(host, shell, one.record)
        instant_export.end(one.held)


def test_vm_runs_from_the_store_and_moves_to_its_host_while_it_writes(instantly: Callable[..., Instantly]) -> None:
    vm = instantly()
    vm.start()
    vm.wait_for(lambda: vm.record_now() > 50)
    chain = vm.kvm.run(["qemu-img", "info", "-U", "-f", "qcow2", vm.record.disks[0].overlay]).stdout
    assert f"backing file: nbd+unix:///?socket={vm.record.socket('vda')}" in chain
    before = vm.record_now()
    vm.keep()
    assert vm.state() == "running (booted)"
    vm.assert_no_export()
    vm.wait_for(lambda: last_record(vm.overlay(), "qcow2") > before + 200)
    for flags in ([], ["--inactive"]):
        assert "nbd" not in vm.kvm.virsh("dumpxml", vm.name, *flags)
    vm.kvm.virsh("destroy", vm.name)
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(vm.overlay())], check=True)
    vm.kvm.virsh("start", vm.name)
    vm.assert_image_untouched()


def test_idle_vm_that_was_moved_has_the_disk_of_the_image_and_is_as_thin(instantly: Callable[..., Instantly]) -> None:
    vm = instantly(writes=False, size_bytes=512 << 20)
    vm.start()
    vm.keep()
    vm.kvm.virsh("destroy", vm.name)
    argv = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(vm.image), str(vm.overlay())]
    assert "identical" in subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert vm.overlay().stat().st_blocks * 512 < vm.image.stat().st_blocks * 512 + (1 << 20)
    vm.assert_image_untouched()


def test_exports_that_are_killed_pause_the_vm_and_it_goes_on_when_they_are_back(
    instantly: Callable[..., Instantly],
) -> None:
    vm = instantly()
    vm.start()
    vm.wait_for(lambda: vm.record_now() > 20)
    vm.kill_exports()
    vm.wait_for(lambda: vm.state() == "paused (I/O error)")
    with pytest.raises(HypervisorError, match="gbs instant keep"):
        instant.move(vm.host, vm.shell, vm.record)
    vm.serve()
    assert instant.resume(vm.host, vm.record)
    before = vm.record_now()
    vm.wait_for(lambda: vm.record_now() > before + 300)
    vm.keep()
    vm.kvm.virsh("destroy", vm.name)
    assert last_record(vm.overlay(), "qcow2") > before + 300
    vm.assert_image_untouched()


def test_ssh_that_breaks_is_connected_again(instantly: Callable[..., Instantly]) -> None:
    vm = instantly()
    vm.start()
    pid = instant_export.pid_of(vm.held)
    lines = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    (ssh,) = [int(line.split()[0]) for line in lines.stdout.splitlines() if line.split()[1] == "ssh"]
    os.kill(ssh, signal.SIGKILL)
    vm.serve()
    before = vm.record_now()
    vm.wait_for(lambda: instant.resume(vm.host, vm.record) or vm.record_now() > before + 300)
    vm.wait_for(lambda: vm.record_now() > before + 300)


def test_move_that_another_run_began_is_adopted(instantly: Callable[..., Instantly]) -> None:
    vm = instantly()
    vm.start()
    vm.kvm.virsh("blockpull", vm.name, "vda", "--bandwidth", "4")  # as a run that was killed left it
    assert "Block Pull" in vm.kvm.virsh("blockjob", vm.name, "vda")
    vm.keep()
    vm.assert_no_export()
    assert vm.state() == "running (booted)"


def test_vm_that_was_shut_off_is_moved_too_and_not_started(instantly: Callable[..., Instantly]) -> None:
    vm = instantly()
    vm.start()
    vm.wait_for(lambda: vm.record_now() > 20)
    vm.kvm.virsh("destroy", vm.name)
    before = vm.record_now()
    vm.keep()
    assert vm.state().startswith("shut off")
    assert last_record(vm.overlay(), "qcow2") == before
    vm.assert_no_export()


def test_vm_that_is_abandoned_leaves_nothing(instantly: Callable[..., Instantly]) -> None:
    vm = instantly()
    vm.start()
    instant.remove(vm.host, vm.shell, vm.record)
    instant_export.end(vm.held)
    vm.assert_nothing_left()
    vm.assert_image_untouched()


def test_host_without_room_refuses_and_one_that_fills_up_pauses_the_vm_until_there_is_some(
    instantly: Callable[..., Instantly], kvm_host: KvmHost
) -> None:
    small = f"{FOLDER}/small"
    kvm_host.run(["mkdir", "-p", small])
    kvm_host.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=711", "small", small])
    try:
        vm = instantly(below=small)
        vm.start()
        kvm_host.run(["dd", "if=/dev/zero", f"of={small}/other", "bs=1M", "count=20", "status=none"])
        with pytest.raises(RecoveryRefused, match="make room"):
            instant.move(vm.host, vm.shell, vm.record)
        in_doubt = vm.record.model_copy(
            update={"disks": (vm.record.disks[0].model_copy(update={"moved_bytes_at_most": 0}),)}
        )
        with pytest.raises(HypervisorError, match="gbs instant keep"):
            instant.move(vm.host, vm.shell, in_doubt)
        kvm_host.run(["rm", f"{small}/other"])
        instant.resume(vm.host, vm.record)
        vm.keep()
        assert vm.state().startswith("running")
        instant.remove(vm.host, vm.shell, vm.record)
    finally:
        kvm_host.run(["umount", "-l", small], check=False)
