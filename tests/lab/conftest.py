"""A KVM host for the tests of this folder, reached as GBS reaches any: qemu+ssh and a shell, with strict host keys."""

from __future__ import annotations

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
from tests.lab.sshd import make_key


@pytest.fixture(scope="session")
def lab_folder() -> Iterator[Path]:
    """A folder that QEMU's user can reach, removed at the end."""
    folder = Path(f"/var/lib/gbs-lab/test-{os.getpid()}")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def kvm_host(lab_folder: Path) -> Iterator[KvmHost]:
    """A running KVM host in namespaces of its own."""
    host = KvmHost("kvm1", lab_folder / "kvm1", make_key(lab_folder / "id_ed25519", "gbs tests"))
    host.start()
    yield host
    host.remove()


@pytest.fixture(scope="session")
def kvm_target(kvm_host: KvmHost, lab_folder: Path) -> SshTarget:
    """How GBS reaches that host."""
    known_hosts = lab_folder / "known_hosts"
    known_hosts.write_text(kvm_host.known_hosts_line + "\n")
    return SshTarget("kvm1", "127.0.0.1", "root", kvm_host.ssh_port, lab_folder / "id_ed25519", known_hosts)


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
