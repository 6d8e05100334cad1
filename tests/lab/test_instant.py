"""Instant recovery on real guests: they run from the store, move to their host, and the image is never written.

Judged by virsh, qemu-img, sha256sum and the numbered log that the guest keeps writing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks import instant as steps
from tasks import places, recovery_assessment
from tasks.drivers import instant, instant_export, instant_records, libvirt_host, recovery_files, ssh
from tasks.drivers.libvirt_host import Host
from tasks.drivers.ssh import Shell
from tasks.drivers.store import Store
from tasks.errors import CommandFailed, HypervisorError, LeftBehind, RecoveryRefused
from tasks.model.domain_recovery import Rewritten
from tasks.model.instant import InstantState, on_overlays
from tasks.model.recovery import Original
from tasks.model.recovery_plan import Order
from tasks.model.ssh_target import SshTarget
from tests.lab.instant_guest import FOLDER, Instantly, image_manifest, make_image
from tests.lab.kvm_host import KvmHost
from tests.lab.sshd import make_key
from tests.lab.tiny_guest import last_record

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def instantly(
    host: Host, shell: Shell, kvm_target: SshTarget, kvm_host: KvmHost, lab_folder: Path
) -> Iterator[Callable[..., Instantly]]:
    made: list[Instantly] = []

    def make(**options) -> Instantly:
        made.append(make_image(host, shell, kvm_target, kvm_host, lab_folder, **options))
        return made[-1]

    yield make
    for one in made:
        one.tear_down()
        # One that a test made somebody else's is left alone, and would write until the last test of all.
        kvm_host.run(["virsh", "destroy", one.name], check=False)
        kvm_host.run(["virsh", "undefine", one.name], check=False)


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
        text = vm.kvm.virsh("dumpxml", vm.name, *flags)
        assert "nbd" not in text
    assert "error_policy" not in text, "the policies are those of its own definition again"
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
    vm.start(noted=False)  # so that it reads from the store before it writes
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


def test_qemu_nbd_and_ssh_that_end_are_started_again(instantly: Callable[..., Instantly]) -> None:
    vm = instantly()
    vm.start(noted=False)
    argv = ["ps", "-o", "pid=,comm=", "--ppid", str(instant_export.pid_of(vm.held))]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    children = {line.split()[1]: int(line.split()[0]) for line in said.splitlines()}
    assert set(children) == {"qemu-nbd", "ssh"}
    for pid in children.values():
        os.kill(pid, signal.SIGKILL)
    vm.serve()
    instant.resume(vm.host, vm.record)  # where it read meanwhile
    before = vm.record_now()
    vm.wait_for(lambda: vm.record_now() > before + 300)


def test_move_that_another_run_began_is_adopted(instantly: Callable[..., Instantly]) -> None:
    vm = instantly()
    vm.start()
    vm.kvm.virsh("blockpull", vm.name, "vda", "--bandwidth", "4")  # as a run that was killed left it
    assert "Bandwidth limit" in vm.kvm.virsh("blockjob", vm.name, "vda")
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
    vm.tear_down()
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


def test_guest_that_wrote_a_qcow2_header_into_its_raw_disk_is_read_as_raw(
    instantly: Callable[..., Instantly], tmp_path: Path
) -> None:
    vm = instantly()
    header = tmp_path / "header.qcow2"
    argv = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", str(header), "1G"]
    subprocess.run(argv, check=True)
    vm.image.chmod(0o640)
    with vm.image.open("r+b") as file:
        file.write(header.read_bytes())
    vm.serve()
    probed = vm.kvm.run(["qemu-img", "info", vm.backing]).stdout
    assert "/etc/shadow" in probed, "what this test is about: asked without a format, it is taken for a qcow2 image"


def test_what_is_zero_in_the_image_is_known_in_the_overlay_and_never_read_from_the_store(
    instantly: Callable[..., Instantly],
) -> None:
    vm = instantly(writes=False, size_bytes=3 << 30, hashed=False)
    vm.start()
    graph = json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": vm.path}, "backing": None})
    said = vm.kvm.run(["qemu-img", "map", "-U", "--output", "json", f"json:{graph}"]).stdout
    known = sum(each["length"] for each in json.loads(said) if each["present"] and each["zero"])
    assert known > (3 << 30) - (64 << 20)
    vm.keep()
    vm.kvm.virsh("destroy", vm.name)
    argv = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(vm.image), str(vm.overlay())]
    assert "identical" in subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_vm_that_somebody_put_in_its_place_is_never_taken_for_it(instantly: Callable[..., Instantly]) -> None:
    vm = instantly()
    definition, made = vm.record.xml, vm.record
    # No run of ours made an overlay; meanwhile its operator has put the disk back and started it as it was.
    vm.kvm.run(["qemu-img", "create", "-q", "-f", "qcow2", vm.path, "64M"])
    xml = definition.replace(definition[definition.index("<metadata>") : definition.index("<devices>")], "")
    vm.host.define(xml, vm.name)
    vm.kvm.virsh("start", vm.name)
    with pytest.raises(CommandFailed):
        instant.make_overlays(vm.shell, made, {})
    assert not instant.is_known(vm.host, made)
    instant.remove(vm.host, vm.shell, made)
    assert vm.state().startswith("running")
    assert vm.overlay().exists()
    with pytest.raises(LeftBehind, match="not marked as the VM that was started there"):
        instant.move(vm.host, vm.shell, made)
    with pytest.raises(LeftBehind, match="not marked"):
        instant.is_active(vm.host, made)
    (found,) = recovery_files.identify(vm.shell, [vm.path])
    noted = made.model_copy(update={"disks": (made.disks[0].model_copy(update={"made": found}),)})
    with pytest.raises(LeftBehind, match=f"VM {vm.name} has it"):  # the mark was taken from ours
        instant.remove(vm.host, vm.shell, noted)
    assert vm.overlay().exists()
    vm.kvm.virsh("destroy", vm.name)
    vm.kvm.virsh("undefine", vm.name)
    vm.overlay().rename(vm.overlay().with_suffix(".kept"))
    vm.kvm.run(["qemu-img", "create", "-q", "-f", "qcow2", vm.path, "64M"])
    instant.remove(vm.host, vm.shell, noted)
    assert vm.overlay().exists(), "another file, by the name of the one that was made"
    vm.overlay().unlink()
    vm.overlay().with_suffix(".kept").rename(vm.overlay())
    instant.remove(vm.host, vm.shell, noted)
    assert not vm.overlay().exists()


def test_tasks_plan_start_and_move_an_image_and_undo_a_start_that_was_killed(
    instantly: Callable[..., Instantly], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vm = instantly()
    monkeypatch.setattr(places, "store", lambda: Store(tmp_path))
    monkeypatch.setattr(places, "kvm_host", lambda _: (vm.target, SimpleNamespace(image_folder=FOLDER)))
    monkeypatch.setattr(places, "hypervisor", lambda _: nullcontext((vm.host, vm.shell)))
    monkeypatch.setattr(places, "inventory", lambda: SimpleNamespace(kvm_hosts={"kvm1": None}, vms={}))
    image = image_manifest(vm, f"{FOLDER}/{vm.name}-vda.qcow2")
    original = Original(vm=vm.name, kvm_host="kvm1", xml=vm.record.xml, image_folder=vm.image.parent, image=image)
    order = Order(kvm_host="kvm1")
    plan = on_overlays(recovery_assessment.plan.fn(original, order), image.disks)

    def assess() -> Rewritten:
        return recovery_assessment.assess_at_once.fn(original, order, plan, "run-1")

    planned = steps.record_of.fn(original, plan, assess())
    assert planned.disks == vm.record.disks
    instant_records.write(Store(tmp_path), planned, InstantState.STARTING)  # and there the run was killed:
    instant_export.begin(vm.host, vm.shell, vm.target, planned, instant_records.exports_lock(Store(tmp_path), planned))
    vm.kvm.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", vm.backing, vm.path, "64M"])
    assert not steps.is_known.fn(planned)
    steps.abandon.fn(planned)
    steps.forget.fn(planned)
    vm.assert_nothing_left()
    vm.kvm.run(["qemu-img", "create", "-q", "-f", "qcow2", vm.path, "64M"])
    instant.remove(vm.host, vm.shell, planned)
    assert vm.overlay().exists(), "it is no overlay on the store: somebody else's"
    with pytest.raises(RecoveryRefused, match="never overwritten"):
        assess()
    vm.overlay().unlink()
    started = steps.start.fn(planned)
    assert steps.find(vm.name) == started
    with pytest.raises(RecoveryRefused, match="has a VM of that name"):
        assess()
    assert steps.is_known.fn(planned)
    moved, runs = steps.move.fn(steps.serve.fn(started))
    assert (moved.state, runs, vm.state()) == (InstantState.MOVED, True, "running (booted)")
    steps.forget.fn(moved)
    assert steps.records() == []
    assert not list(tmp_path.glob("instant/*"))
    vm.assert_no_export()


def test_vm_whose_host_was_restarted_starts_again_with_all_that_it_wrote(
    lab_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kvm = KvmHost("kvm2", lab_folder / "kvm2", make_key(lab_folder / "kvm2-key", "gbs tests"))
    kvm.start()
    target = kvm.target(lab_folder / "kvm2-key")

    @contextmanager
    def hypervisor(_name: str) -> Iterator[tuple[Host, Shell]]:
        with libvirt_host.connect(target) as host, ssh.connect(target) as shell:
            yield host, shell

    monkeypatch.setattr(places, "store", lambda: Store(tmp_path))
    monkeypatch.setattr(places, "kvm_host", lambda _: (target, SimpleNamespace(image_folder=FOLDER)))
    monkeypatch.setattr(places, "hypervisor", hypervisor)
    with hypervisor("kvm2") as (host, shell):
        vm = make_image(host, shell, target, kvm, lab_folder)
    try:
        began = steps.start.fn(vm.record)
        vm.wait_for(lambda: vm.record_now() > 50)
        before = vm.record_now()
        kvm.stop()
        kvm.start()
        cut_off = instant_records.write(Store(tmp_path), began, InstantState.STARTING)  # by a run killed that early
        assert steps.is_known.fn(cut_off), "so it is not undone"
        off = steps.serve.fn(cut_off)
        assert (off.state, vm.state().partition(" ")[0]) == (InstantState.OFF, "shut")
        assert vm.record_now() >= before
        assert steps.start_again.fn(off).state is InstantState.RUNNING
        vm.wait_for(lambda: vm.record_now() > before + 100)
        steps.abandon.fn(off)
        vm.assert_nothing_left()
    finally:
        instant_export.end(instant_records.exports_lock(Store(tmp_path), vm.record))
        kvm.remove()
