"""The lab itself: a host comes up, runs a guest, survives what tests will do to it, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.kvm_host import KvmHost
from tests.lab.leftovers import LABS, sweep
from tests.lab.sshd import make_key
from tests.lab.tiny_guest import TinyGuest, last_record
from tests.lab.window_child import host_pid


@pytest.fixture(name="host")
def _host(tmp_path: Path) -> Iterator[KvmHost]:
    host = KvmHost("lab-test", tmp_path / "host", make_key(tmp_path / "id_ed25519", "lab test"))
    host.start()
    namespace = os.readlink(f"/proc/{host_pid(host)}/ns/pid").strip("pid:[]")
    assert namespace in _pid_namespaces()
    yield host
    host.remove()
    assert not host.running()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    assert namespace not in _pid_namespaces(), "a process of the host lives on"


def _pid_namespaces() -> list[str]:
    argv = ["lsns", "--noheadings", "-t", "pid", "-o", "NS"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


def test_guest_log_over_a_snapshot_and_commit_has_no_gap(host: KvmHost) -> None:
    guest = TinyGuest(host, "tiny1", disk_count=2)
    guest.start()
    guest.wait_for_record(40)
    overlays = [f"{disk.target},file={disk.path}.snap" for disk in guest.disks]
    specs = [word for overlay in overlays for word in ("--diskspec", overlay)]
    host.virsh("snapshot-create-as", guest.name, "snap", "--disk-only", "--atomic", "--no-metadata", *specs)
    frozen = [last_record(guest.outside(disk.path), disk.format) for disk in guest.disks]
    assert frozen[0] - frozen[1] in (0, 1)
    time.sleep(1)
    assert last_record(guest.outside(guest.disks[0].path), "qcow2") == frozen[0]
    for disk in guest.disks:
        host.virsh("blockcommit", guest.name, disk.target, "--active", "--pivot", "--wait")
        guest.outside(disk.path + ".snap").unlink()
    assert guest.wait_for_record(frozen[0] + 60) > frozen[0]
    guest.destroy()


def test_guest_that_starts_again_goes_on_with_its_log(host: KvmHost) -> None:
    guest = TinyGuest(host, "tiny2", disk_format="raw")
    guest.start()
    first = guest.wait_for_record(50)
    host.virsh("destroy", guest.name)
    host.virsh("start", guest.name)
    assert guest.wait_for_record(first + 20) >= first + 20


def test_guest_outlives_a_killed_libvirtd(host: KvmHost) -> None:
    guest = TinyGuest(host, "tiny3", writes=False)
    guest.start()
    host.kill_libvirtd()
    assert host.run(["virsh", "list"], check=False).returncode != 0
    host.restart_libvirtd()
    assert host.virsh("domstate", guest.name).strip() == "running"


def test_host_that_was_cut_off_comes_back_with_its_domains_and_its_key(host: KvmHost) -> None:
    guest = TinyGuest(host, "tiny4", writes=False)
    guest.start()
    line = host.known_hosts_line
    host.stop()
    host.start()
    assert host.known_hosts_line == line
    assert host.virsh("domstate", guest.name).strip() == "shut off"


def test_second_host_sees_nothing_of_the_first(host: KvmHost, tmp_path: Path) -> None:
    TinyGuest(host, "tiny5", writes=False).start()
    other = KvmHost("lab-test2", tmp_path / "host2", host.authorized_key)
    other.start()
    try:
        assert other.virsh("list", "--all", "--name").split() == []
        assert other.run(["hostname"]).stdout.strip() == "lab-test2"
    finally:
        other.remove()


def test_lab_of_a_run_that_was_killed_is_swept(tmp_path: Path) -> None:
    killed = subprocess.Popen(["true"])
    killed.wait()
    folder = LABS / f"test-swept-{killed.pid}"
    host = KvmHost("gone1", folder / "hosts/gone1", make_key(tmp_path / "key", "swept"))
    host.start()
    sweep()
    assert not host.running()
    assert not folder.exists()
