"""A VM that runs from the store: its definition, its disks' new names, and the lock by which its exports are found."""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.drivers import instant_export, lock
from tasks.drivers.host_shell import LocalShell
from tasks.drivers.instant_server import Exports
from tasks.errors import CommandFailed
from tasks.model.instant import InstantDisk, InstantState, InstantVm, notable, overlay_of
from tasks.model.instant_xml import baselabel, off_the_store, on_the_store, still_on_the_store
from tasks.model.manifest import DiskRecord
from tasks.model.ssh_target import SshTarget
from tasks.model.window import Layer

UUID = "6d0fa9b4-6d5c-4f0e-9d59-0c5d7ad2c001"
XML = """<domain type="kvm">
  <name>web1</name>
  <devices>
    <disk type="file" device="disk">
      <driver name="qemu" type="qcow2" discard="unmap" />
      <source file="/images/web1.qcow2" />
      <target dev="vda" bus="virtio" />
    </disk>
  </devices>
</domain>
"""


def record() -> InstantVm:
    layer = Layer(path="/srv/gbs/images/kvm1/web1/1/vda.raw", format="raw")
    disk = InstantDisk(
        target="vda", served=layer, overlay="/images/web1.qcow2", size_bytes=1 << 30, moved_bytes_at_most=1 << 20
    )
    return InstantVm(
        vm="web1",
        uuid=UUID,
        kvm_host="kvm1",
        image="1",
        image_folder=Path("/srv/gbs/images/kvm1/web1/1"),
        night=None,
        state=InstantState.STARTING,
        started=datetime(2026, 11, 26, tzinfo=UTC),
        disks=(disk,),
        xml=XML,
    )


def test_definition_on_the_store_states_the_whole_chain_and_pauses_on_errors() -> None:
    text = on_the_store(record())
    disk = ET.fromstring(text).find("devices/disk")
    assert disk is not None
    assert [child.tag for child in disk] == ["driver", "source", "backingStore", "target"]
    driver, backing = disk.find("driver"), disk.find("backingStore")
    assert driver is not None
    assert backing is not None
    assert (driver.get("error_policy"), driver.get("rerror_policy")) == ("stop", "stop")
    assert ET.tostring(backing, encoding="unicode").split("\n")[0].strip() == (
        '<backingStore type="network"><format type="raw" /><source protocol="nbd">'
        f'<host transport="unix" socket="/run/gbs-instant-{UUID}/vda" /></source><backingStore /></backingStore>'
    )
    assert still_on_the_store(text, record()) == ("vda",)
    assert still_on_the_store(XML, record()) == ()
    assert record().xml == XML
    changed = text.replace("<name>web1</name>", "<name>web1</name><memory>7</memory>")
    back = off_the_store(changed, record())
    assert "<memory>7</memory>" in back, "what an operator changed meanwhile stays"
    assert still_on_the_store(back, record()) == ()
    assert "policy" not in back


@pytest.mark.parametrize(
    ("source_format", "place", "overlay"),
    [
        ("qcow2", "/images/web1.qcow2", "/images/web1.qcow2"),
        ("raw", "/images/web1.raw", "/images/web1.raw.qcow2"),
        ("raw", "/images/web1.qcow2", "/images/web1.qcow2.qcow2"),
        (None, "/images/web1-vda.img", "/images/web1-vda.img.qcow2"),
    ],
)
def test_overlay_is_named_as_what_it_is(source_format: str | None, place: str, overlay: str) -> None:
    common = {"target": "vda", "file": "vda.raw", "format": "raw", "source": place, "virtual_size_bytes": 1}
    assert overlay_of(DiskRecord.model_validate({**common, "source_format": source_format}), place) == overlay


def test_owner_of_the_sockets_is_whom_qemu_runs_as() -> None:
    models = "<secmodel><model>apparmor</model></secmodel><secmodel><model>dac</model>"
    labelled = f"{models}<baselabel type='kvm'>+64055:+109</baselabel></secmodel>"
    assert baselabel(f"<capabilities><host>{labelled}</host></capabilities>") == "64055:109"
    assert baselabel("<capabilities><host/></capabilities>") == "0:0"


def test_exports_are_found_by_their_lock_and_only_our_server_is_ever_ended(tmp_path: Path) -> None:
    held = tmp_path / "exports"
    assert not instant_export.runs(held)
    with lock.hold(held, "export of web1"):
        assert instant_export.runs(held)
        assert str(os.getpid()) in held.read_text()
        assert instant_export.pid_of(held) is None, "that is this test"
    assert not instant_export.runs(held)
    instant_export.end(held)
    assert not held.exists()


@pytest.fixture
def kvm(tmp_path: Path) -> Iterator[tuple[Any, SshTarget]]:
    """A KVM host whose sshd does not answer, and the folder of the sockets, which is on this machine."""
    for name in ("key", "known_hosts"):
        (tmp_path / name).touch()
    target = SshTarget("kvm1", "127.0.0.1", "root", 1, tmp_path / "key", tmp_path / "known_hosts")
    yield SimpleNamespace(call=lambda *_: "<capabilities><host/></capabilities>"), target
    shutil.rmtree(record().folder, ignore_errors=True)


def serving(path: Path) -> InstantVm:
    """The record of a VM that runs from this file."""
    path.touch()
    os.truncate(path, 1 << 20)
    served = {"served": Layer(path=str(path), format="raw")}
    return record().model_copy(update={"disks": (record().disks[0].model_copy(update=served),)})


def test_exports_can_be_ended_as_soon_as_they_are_launched_and_those_of_another_image_are_not_taken(
    tmp_path: Path, kvm: tuple[Any, SshTarget]
) -> None:
    (host, target), held, shell = kvm, tmp_path / "exports", LocalShell()
    first, second = serving(tmp_path / "first.raw"), serving(tmp_path / "second.raw")
    instant_export.launch(host, shell, target, first, held)
    pid = instant_export.pid_of(held)
    assert pid is not None, "it holds its lock"
    instant_export.launch(host, shell, target, first, held)
    assert instant_export.pid_of(held) == pid
    instant_export.launch(host, shell, target, second, held)
    assert instant_export.pid_of(held) not in (None, pid)
    instant_export.end(held)
    assert not held.exists()


def test_exports_that_do_not_begin_are_said_and_nothing_runs_on(
    tmp_path: Path, kvm: tuple[Any, SshTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    (host, target), held = kvm, tmp_path / "exports"
    monkeypatch.setattr(instant_export, "_PROGRAM", "tasks.drivers.no_such_program")
    with pytest.raises(CommandFailed, match="export of web1 failed with status 1: it has not begun; see "):
        instant_export.launch(host, LocalShell(), target, serving(tmp_path / "first.raw"), held)
    assert "no_such_program" in instant_export.log_of(held).read_text()
    assert not instant_export.runs(held)


def test_exports_whose_beginner_is_killed_before_he_saw_them_do_not_run_on(tmp_path: Path) -> None:
    target = SshTarget("kvm1", "127.0.0.1", "root", 1, tmp_path / "key", tmp_path / "known_hosts")
    exports = Exports("export of web1", tmp_path / "exports", target, "0:0", {})
    argv = [sys.executable, "-m", "tasks.drivers.instant_server"]
    done = subprocess.run(argv, input=f"{exports.to_json()}\n", text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert "who began it was killed" in done.stderr
    assert not instant_export.runs(exports.lock)


def test_exports_to_a_host_that_has_moved_are_not_taken_for_these() -> None:
    """Symptom: once the KVM host had another address, its VM's exports were never served again."""
    target = SshTarget("kvm1", "192.0.2.1", "root", 22, Path("key"), Path("known_hosts"))
    moved = replace(target, address="192.0.2.2")
    marks = [Exports("export of web1", Path("exports"), each, "0:0", {}).mark for each in (target, target, moved)]
    assert marks[0] == marks[1] != marks[2]


def test_only_whole_clusters_of_large_zeroes_are_noted_in_requests_that_qemu_takes() -> None:
    mib, gib = 1 << 20, 1 << 30
    noted = notable([(512, 5 * mib), (8 * mib, mib), (gib, 5 * gib)])
    assert noted[0] == (65536, 5 * mib - 65536)
    assert sum(length for _, length in noted[1:]) == 5 * gib
    assert all(offset % 65536 == 0 and length % 65536 == 0 and length < 2 * gib for offset, length in noted)
    many = notable((each * 16 * mib, (4 + each % 8) * mib) for each in range(4000))
    assert len(many) == 1000
    assert {length for _, length in many} == {10 * mib, 11 * mib}, "the largest"
    assert many == sorted(many)
