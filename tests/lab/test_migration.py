"""A VM that moves to another KVM host with its disks, live, and back: the next image succeeds on either.

Two KVM hosts of the lab; virsh moves the guest.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.drivers import libvirt_host, ssh
from tasks.drivers.host_shell import HostShell
from tasks.drivers.libvirt_host import Host
from tasks.model.ssh_target import SshTarget
from tests.lab.kvm_host import KvmHost
from tests.lab.snaplive_guest import Guests
from tests.lab.sshd import make_key
from tests.lab.taken_images import Images, assert_left_alone, records_of
from tests.lab.tiny_guest import TinyGuest


@pytest.fixture(scope="module")
def other_host(lab_folder: Path, kvm_host: KvmHost) -> Iterator[KvmHost]:
    """A second KVM host; the first one's key opens it."""
    host = KvmHost("kvm2", lab_folder / "kvm2", make_key(lab_folder / "id_ed25519", "gbs tests"))
    host.start()
    yield host
    host.remove()


def libvirt_uri(host: KvmHost) -> str:
    """The host's libvirt for a program outside of its namespaces."""
    pid = host.enter()[1].removeprefix("--target=")
    return f"qemu+unix:///system?socket=/proc/{pid}/root/run/libvirt/libvirt-sock"


def migrate(guest: TinyGuest, there: KvmHost) -> TinyGuest:
    """Move the running guest and its disks; it is then known there only."""
    moved = TinyGuest(there, guest.name, disk_count=guest.disk_count, size_bytes=guest.size_bytes)
    for disk in guest.disks:
        size = json.loads(
            subprocess.check_output(["qemu-img", "info", "-U", "--output=json", str(guest.outside(disk.path))])
        )["virtual-size"]
        argv = ["qemu-img", "create", "-q", "-f", disk.format, str(moved.outside(disk.path)), str(size)]
        subprocess.run(argv, check=True)
    argv = ["virsh", "-q", "-c", libvirt_uri(guest.host), "migrate", guest.name, libvirt_uri(there), "--live"]
    argv += ["--persistent", "--undefinesource", "--copy-storage-all", "--migrateuri", "tcp://127.0.0.1"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for disk in guest.disks:
        guest.outside(disk.path).unlink()
    return moved


def on_host(images: Images, host: Host, shell: HostShell, target: SshTarget, guest: TinyGuest) -> Images:
    """The same row of images, taken from another host from now on."""
    moved = Images(host, shell, target, guest, images.folder)
    moved.count, moved.last = images.count, images.last
    return moved


def test_vm_that_was_migrated_is_copied_whole_once_and_then_by_its_changes(
    host: Host, shell: HostShell, kvm_target: SshTarget, other_host: KvmHost, guests: Guests, folder: Path
) -> None:
    folder.mkdir()
    guest = guests(disk_count=2)
    here = Images(host, shell, kvm_target, guest, folder)
    last = records_of(here.take()[0])
    assert all(disk.increment.startswith("its changes") for disk in here.take()[1].disks)
    there_target = other_host.target(kvm_target.private_key_file)
    moved = migrate(guest, other_host)
    try:
        with libvirt_host.connect(there_target) as there_host, ssh.connect(there_target) as there_shell:
            there = on_host(here, there_host, there_shell, there_target, moved)
            last = assert_whole_then_changes(there, last)
        back = migrate(moved, guest.host)
        assert back.disks == guest.disks
        assert_whole_then_changes(on_host(there, host, shell, kvm_target, guest), last)
    finally:
        other_host.run(["virsh", "-q", "destroy", guest.name], check=False)
        other_host.run(["virsh", "-q", "undefine", guest.name, "--checkpoints-metadata"], check=False)


def assert_whole_then_changes(images: Images, last: tuple[int, int]) -> tuple[int, int]:
    """Two images of a guest that has just arrived, each one instant and later than `last`; the records of the newer."""
    for whole in (True, False):
        before = last
        image, taken = images.take()
        last = records_of(image)
        assert last > before
        assert [disk.increment.startswith("its changes") for disk in taken.disks] == [not whole] * 2, taken.disks
        assert_left_alone(images, f"gbs-{image.name}")
    return last
