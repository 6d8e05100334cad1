"""A KVM host for the tests of this folder, reached as GBS reaches any: qemu+ssh and a shell, with strict host keys."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.drivers import libvirt_host, ssh
from tasks.drivers.libvirt_host import Host
from tasks.drivers.ssh import Shell
from tasks.model.ssh_target import SshTarget
from tests.lab.kvm_host import KvmHost
from tests.lab.leftovers import LABS, sweep
from tests.lab.snaplive_guest import Guests
from tests.lab.sshd import make_key
from tests.lab.tiny_guest import TinyGuest

_names = (f"snap{number}" for number in itertools.count(1))


@pytest.fixture(scope="session", autouse=True)
def _no_leftovers() -> None:
    """Nothing of a run that was killed runs on beside this one."""
    sweep()


@pytest.fixture(scope="session")
def lab_folder() -> Iterator[Path]:
    """A folder that QEMU's user can reach, removed at the end."""
    folder = LABS / f"test-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def kvm_host(lab_folder: Path) -> Iterator[KvmHost]:
    """A running KVM host in namespaces of its own."""
    host = KvmHost("kvm1", lab_folder / "kvm1", make_key(lab_folder / "id_ed25519", "gbs tests"))
    host.start()
    # The developer's own start-up files would run before each remote command (pyenv's: 1 s).
    host.run(["sh", "-c", "test ! -e /root/.bashrc || mount --bind /dev/null /root/.bashrc"])
    yield host
    host.remove()


@pytest.fixture(scope="session")
def kvm_target(kvm_host: KvmHost, lab_folder: Path) -> SshTarget:
    """How GBS reaches that host."""
    return kvm_host.target(lab_folder / "id_ed25519")


@pytest.fixture
def host(kvm_target: SshTarget) -> Iterator[Host]:
    """libvirt of that host, over ssh."""
    with libvirt_host.connect(kvm_target) as connected:
        yield connected


@pytest.fixture(scope="module")
def shell(kvm_target: SshTarget) -> Iterator[Shell]:
    """A shell on that host."""
    with ssh.connect(kvm_target) as connected:
        yield connected


@pytest.fixture
def guests(kvm_host: KvmHost) -> Iterator[Guests]:
    """Makes running guests; they and their files are gone afterwards."""
    made: list[TinyGuest] = []

    def make(**options) -> TinyGuest:
        guest = TinyGuest(kvm_host, next(_names), **options)
        made.append(guest)
        guest.start()
        guest.wait_for_record(20)
        return guest

    yield make
    for guest in made:
        kvm_host.run(["virsh", "-q", "destroy", guest.name], check=False)
        kvm_host.run(["virsh", "-q", "undefine", guest.name, "--managed-save", "--checkpoints-metadata"], check=False)
        for path in guest.host.images.glob(f"{guest.name}-*"):
            path.unlink()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the journals lie."""
    return tmp_path / "journal"
