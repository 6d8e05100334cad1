"""Instant recovery as a flow and as commands: records, what a cut-off run leaves, what the operator is told."""

import hashlib
import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks import instant as steps
from tasks.drivers import appliance, instant, instant_export, instant_records, recovery_put, recovery_target, vm_parts
from tasks.drivers.appliance import UpdateResult
from tasks.drivers.recovery_target import refused
from tasks.drivers.store import Store
from tasks.errors import HypervisorError, RecoveryRefused, StoreError, Unreachable
from tasks.model.assessment import Finding
from tasks.model.domain_capabilities import Fit
from tasks.model.instant import InstantState, InstantVm, warnings_of
from tasks.model.manifest import VmParts
from tasks.model.recovery import UpdatedImage
from tasks.model.recovery_plan import Place
from tasks.model.recovery_record import FileId
from tests.flows.fake_site import UUID, FakeSite
from tests.flows.test_commands import run  # noqa: F401 - a fixture


class FakeKvmHost:
    """The VM on its host and its exports: which are there, and what was done to them."""

    def __init__(self) -> None:
        self.known, self.active, self.served, self.moved = False, False, False, False
        self.in_the_way: list[Finding] = []
        self.did: list[str] = []
        self.fails: dict[str, Exception] = {}

    def do(self, verb: str, **changes: bool) -> None:
        self.did.append(verb)
        if verb in self.fails:
            raise self.fails.pop(verb)
        for name, value in changes.items():
            setattr(self, name, value)

    def make_overlays(self, _shell: Any, record: InstantVm, _zeroes: Any) -> InstantVm:
        self.do("make overlays")
        return record

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(recovery_target, "pools", lambda *_: {})
        patch.setattr(recovery_target, "clashes", lambda *_: list(self.in_the_way))
        patch.setattr(recovery_target, "room", lambda *_: [])
        patch.setattr(recovery_target, "capabilities", lambda *_, **__: (Fit(), []))
        patch.setattr(instant, "require_room", lambda *_: None)
        patch.setattr(instant, "make_overlays", self.make_overlays)
        patch.setattr(instant, "start", lambda *_: self.do("start", known=True, active=True))
        patch.setattr(instant, "start_again", lambda *_: self.do("start again", active=True))
        patch.setattr(instant, "is_active", lambda *_: self.active if self.known else None)
        patch.setattr(instant, "is_known", lambda *_: self.known)
        patch.setattr(instant, "resume", lambda *_: False)
        patch.setattr(instant, "move", lambda *_: self.do("move", moved=True))
        patch.setattr(instant, "remove", lambda *_: self.do("remove", known=False, active=False))
        patch.setattr(instant, "forget_sockets", lambda *_: self.do("forget sockets"))
        patch.setattr(instant_export, "begin", lambda *_: self.do("export", served=True))
        patch.setattr(instant_export, "launch", lambda *_: self.do("export", served=True))
        patch.setattr(instant_export, "prove", lambda *_: self.do("read exports"))
        patch.setattr(instant_export, "end", lambda *_: self.do("end export", served=False))
        patch.setattr(instant_export, "runs", lambda *_: self.served)


@pytest.fixture
def kvm(site: FakeSite, run: Any, monkeypatch: pytest.MonkeyPatch) -> FakeKvmHost:  # noqa: F811
    """A site with an image of web1, whose host has lost it."""
    assert run("run", "prepare", "--client", "kvm1").code == 0
    assert run("run", "overnight", "--client", "kvm1").code == 0
    from flows.cli.kvm import kvmimg_get_command

    assert run("web1", script=kvmimg_get_command).code == 0
    host = FakeKvmHost()
    host.install(monkeypatch)
    return host


def record_of(site: FakeSite) -> InstantVm | None:
    return instant_records.find(Store(site.store), UUID)


def image_of(site: FakeSite) -> Path:
    (image,) = site.store.glob("images/kvm1/web1/*/vda.raw")
    return image


def test_vm_is_started_held_shown_and_kept(site: FakeSite, run: Any, kvm: FakeKvmHost) -> None:  # noqa: F811
    started = json.loads(run("instant", "start", "web1", "--hold", "--json").out)
    assert (started["done"], started["ended"], started["night"]) == ("started", False, None)
    assert any("of no later night" in note for note in started["notes"])
    assert kvm.did == ["export", "make overlays", "read exports", "start"]
    record = record_of(site)
    assert record is not None
    assert record.state is InstantState.RUNNING
    assert [(disk.served.path, disk.served.format) for disk in record.disks] == [(str(image_of(site)), "raw")]
    assert record.disks[0].overlay == "/var/lib/libvirt/images/web1.raw.qcow2"
    kvm.served = False
    assert "web1 on kvm1 still runs from image" in run("status").err
    (row,) = json.loads(run("list", "instant", "--json").out)
    assert (row["vm"], row["state"], row["exported"]) == ("web1", "running", False)
    kept = json.loads(run("instant", "start", "web1", "--json").out)  # again, without --hold: it goes on
    assert (kept["done"], kept["ended"]) == ("kept", True)
    assert kvm.did[4:] == ["export", "move", "end export", "forget sockets"]
    assert record_of(site) is None
    ended = run("instant", "keep", "web1")
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert "no VM that runs from the store named 'web1'" in ended.errors[0]


def test_recover_vm_instant_is_the_same_and_takes_nothing_that_instant_recovery_cannot(
    site: FakeSite,
    run: Any,  # noqa: F811
    kvm: FakeKvmHost,
) -> None:
    for word in ("--isolated", "--as=web2", "--network=a=b", "--dry-run"):
        ended = run("recover", "vm", "web1", "--instant", word)
        assert (ended.code, kvm.did) == (2, [])
        assert "instant goes with vm, night and to alone" in ended.errors[0]
    kept = json.loads(run("recover", "vm", "web1", "--instant", "--json").out)
    assert (kept["vm"], kept["done"], kept["night"]) == ("web1", "kept", None)
    assert kvm.did[:4] == ["export", "make overlays", "read exports", "start"]


def test_start_that_is_refused_changes_nothing_and_one_that_fails_is_undone(
    site: FakeSite,
    run: Any,  # noqa: F811
    kvm: FakeKvmHost,
) -> None:
    kvm.in_the_way = [
        refused("name", "kvm1 has a VM of that name", "rename it"),
        refused("MAC", "52:54:00:00:00:01 belongs to VM other on kvm1", "change that one's"),
    ]
    ended = run("instant", "start", "web1")
    assert (ended.code, kvm.did, record_of(site)) == (1, [], None)
    assert "kvm1 has a VM of that name; MAC: 52:54:00:00:00:01 belongs to VM other" in ended.errors[0]
    kvm.in_the_way = []
    kvm.fails["start"] = HypervisorError("web1", "start", "no")
    ended = run("instant", "start", "web1")
    assert "start failed: no" in ended.errors[0]
    assert kvm.did[-3:] == ["remove", "end export", "forget sockets"]
    assert record_of(site) is None


def test_vm_that_runs_on_another_host_is_not_started_a_second_time(
    site: FakeSite,
    run: Any,  # noqa: F811
    kvm: FakeKvmHost,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hosts = {name: {"address": f"{name}.test", "paths": ["/etc"]} for name in ("kvm1", "kvm2", "kvm3")}
    site.declare(hosts, site.clients())
    assert run("apply").code == 0
    site.fail("libvirt", "kvm3", Unreachable("kvm3", "no answer"))
    running = SimpleNamespace(name="web1")
    monkeypatch.setattr(recovery_target, "runs", lambda host, _: running if host.name == "kvm2" else None)
    ended = run("instant", "start", "web1")
    assert (ended.code, kvm.did, record_of(site)) == (1, [], None)
    beside = "bring it back beside it: gbs recover vm web1 --isolated"
    assert "it still runs on kvm2" in ended.errors[0]
    assert ended.errors[0].endswith(beside)
    monkeypatch.setattr(recovery_target, "runs", lambda *_: None)
    assert "kvm3: it cannot be asked for the VM" in caplog.text
    site.answering = {"web1"}
    (refusal,) = run("instant", "start", "web1").errors
    assert "web1 still answers at its address" in refusal
    assert refusal.endswith(f"switch it off, or {beside}")
    assert (kvm.did, record_of(site)) == ([], None)


def test_kernel_that_is_beside_its_disks_is_brought_before_the_start_and_noted(
    site: FakeSite,
    run: Any,  # noqa: F811
    kvm: FakeKvmHost,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows.cli.kvm import kvmimg_get_command

    def capture(*args: Any) -> VmParts:
        (args[-1] / "kernel").write_bytes(b"kernel")
        site.capture(*args)
        return VmParts(files={"kernel": "kernel"})

    def place_file(
        _shell: Any, kept: instant_records.Parts, place: Place, source: Path, sha256: str, _send: Any
    ) -> int:
        assert hashlib.sha256(source.read_bytes()).hexdigest() == sha256
        put = kept.read()
        assert put is not None
        kvm.do(f"put {put.partial(place.path).replace(put.run, 'RUN')}")
        kept.write(put.noting(place.role, FileId(1, 2, "")))
        return 0

    monkeypatch.setattr(vm_parts, "capture", capture)
    monkeypatch.setattr(recovery_put, "place_file", place_file)
    time.sleep(1)  # an image's id is of the second
    assert run("web1", script=kvmimg_get_command).code == 0
    assert run("instant", "start", "web1", "--hold").code == 0
    put = "put /var/lib/libvirt/images/web1-kernel.gbs-partial-RUN"
    assert kvm.did == ["export", "make overlays", put, "read exports", "start"]
    record = record_of(site)
    assert record is not None
    assert [(part.role, part.path, part.inode) for part in record.parts] == [
        ("kernel", "/var/lib/libvirt/images/web1-kernel", 2)
    ]


def test_runs_that_were_killed_are_reconciled(site: FakeSite, run: Any, kvm: FakeKvmHost) -> None:  # noqa: F811
    assert run("instant", "start", "web1", "--hold").code == 0
    record = record_of(site)
    assert record is not None
    kvm.did.clear()
    instant_records.write(Store(site.store), record, InstantState.RUNNING)
    assert run("reconcile").code == 0
    assert kvm.did == ["export"]
    kvm.fails["move"] = HypervisorError("web1", "the move of disk vda", "the host has no room left, make some")
    ended = run("instant", "keep", "web1")
    assert (ended.code, record_of(site) is not None) == (1, True)
    assert "no room left" in ended.errors[0]
    assert run("reconcile").code == 0
    assert (kvm.moved, record_of(site)) == (True, None)
    instant_records.write(Store(site.store), record, InstantState.STARTING)
    kvm.known, kvm.active = False, False
    assert run("reconcile").code == 0
    assert kvm.did[-3:] == ["remove", "end export", "forget sockets"]
    assert record_of(site) is None


@pytest.mark.parametrize("state", [InstantState.STARTING, InstantState.RUNNING, InstantState.MOVING])
def test_vm_whose_host_was_restarted_is_said_and_started_again_with_what_it_wrote(
    site: FakeSite,
    run: Any,  # noqa: F811
    kvm: FakeKvmHost,
    state: InstantState,
) -> None:
    assert run("instant", "start", "web1", "--hold").code == 0
    record = record_of(site)
    assert record is not None
    instant_records.write(Store(site.store), record, state)
    kvm.did.clear()
    kvm.active = False
    assert run("reconcile").code == 0
    assert kvm.did == ["export"], "nothing is removed, nothing moves, and it is not started behind its operator's back"
    told = run("status")
    assert told.code == 3
    assert "is shut off; what it wrote is in its overlays; gbs instant start web1 starts it again" in told.err
    started = json.loads(run("instant", "start", "web1", "--hold", "--json").out)
    assert (started["done"], kvm.did) == ("started", ["export", "export", "start again"])
    assert not any("shut off" in note for note in started["notes"])


def pull_web1(run: Any) -> None:  # noqa: F811
    for stage in ("prepare", "overnight"):
        assert run("run", stage, "--client", "web1").code == 0


def test_vm_that_came_back_while_its_image_was_updated_is_not_started(
    site: FakeSite,
    run: Any,  # noqa: F811
    kvm: FakeKvmHost,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pull_web1(run)

    def update(*_: Any, **__: Any) -> UpdateResult:
        site.answering = {"web1"}
        return UpdateResult(1, 0, 4, 1.0, 1.0)

    monkeypatch.setattr(appliance, "update_files", update)
    ended = run("instant", "start", "web1", "--from", "latest")
    assert (ended.code, record_of(site)) == (1, None)
    assert "web1 still answers at its address" in ended.errors[0]
    assert kvm.did == ["remove", "end export", "forget sockets"]
    assert list(site.store.glob("recovery/web1/*")) == []
    site.answering = set()
    monkeypatch.setattr(appliance, "update_files", lambda *_, **__: UpdateResult(1, 0, 4, 1.0, 1.0))
    assert run("instant", "start", "web1", "--from", "latest", "--hold").code == 0
    assert kvm.did[-4:] == ["export", "make overlays", "read exports", "start"]
    record = record_of(site)
    assert record is not None
    assert record.run, "it marks the VM"
    assert record.run in record.xml


@pytest.mark.parametrize("where", ["another host", "its address"])
def test_vm_that_was_off_and_came_back_elsewhere_is_not_started_again(
    site: FakeSite,
    run: Any,  # noqa: F811
    kvm: FakeKvmHost,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    hosts = {name: {"address": f"{name}.test", "paths": ["/etc"]} for name in ("kvm1", "kvm2")}
    site.declare(hosts, site.clients())
    assert run("apply").code == 0
    found = dict[str, Any]()
    monkeypatch.setattr(recovery_target, "runs", lambda host, _: found.get(host.name))
    assert run("instant", "start", "web1", "--hold").code == 0
    kvm.active = False
    if where == "its address":
        site.answering = {"web1"}
    else:
        found["kvm2"] = SimpleNamespace(name="web1")
    ended = run("instant", "start", "web1")
    assert ended.code == 1
    assert "it still runs on kvm2" in ended.errors[0] or "web1 still answers at its address" in ended.errors[0]
    assert "start again" not in kvm.did
    record = record_of(site)
    assert record is not None
    assert record.state is InstantState.OFF


def test_recovery_is_refused_while_the_vm_is_held_in_the_store_but_not_a_second_one(
    site: FakeSite,
    run: Any,  # noqa: F811
    kvm: FakeKvmHost,
) -> None:
    pull_web1(run)
    assert run("instant", "start", "web1", "--hold").code == 0
    ended = run("recover", "vm", "web1", "--yes")
    assert ended.code == 1
    assert "end that first: gbs instant keep web1, or gbs instant abandon web1" in ended.errors[0]
    for words in (("--as", "web2"), ("--isolated",)):
        assert run("recover", "vm", "web1", "--dry-run", *words).code == 0
    assert run("instant", "abandon", "web1", "--yes").code == 0
    assert run("recover", "vm", "web1", "--dry-run").code == 0


def test_record_that_cannot_be_read_keeps_the_vm_from_being_started_a_second_time(
    site: FakeSite,
    run: Any,  # noqa: F811
    kvm: FakeKvmHost,
) -> None:
    pull_web1(run)
    assert run("instant", "start", "web1", "--hold").code == 0
    (path,) = instant_records.paths(Store(site.store))
    path.write_text("{")
    kvm.known = kvm.active = False
    kvm.did.clear()
    for words in (("recover", "vm", "web1", "--yes"), ("instant", "start", "web1"), ("reconcile",)):
        ended = run(*words)
        assert ended.code != 0
        assert f"{path} is damaged: expected a InstantVm" in ended.errors[-1]
    assert kvm.did == []
    assert path.read_text() == "{"


def test_vm_that_is_kept_while_it_is_off_is_not_said_to_run(site: FakeSite, run: Any, kvm: FakeKvmHost) -> None:  # noqa: F811
    assert run("instant", "start", "web1", "--hold").code == 0
    kvm.active = False
    ended = run("instant", "keep", "web1", "--json")
    kept = json.loads(ended.out)
    assert (kept["done"], kvm.moved, kept["warnings"]) == ("kept", True, ["web1 is shut off: virsh start"])
    assert ended.code == 3


@pytest.mark.parametrize("words", [["instant", "start", "web1"], ["recover", "vm", "web1", "--instant"]])
def test_older_image_that_had_to_be_taken_is_a_warning_as_of_any_recovery(
    site: FakeSite,
    run: Any,  # noqa: F811
    kvm: FakeKvmHost,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    pull_web1(run)
    known = UpdateResult(1, 0, 4, 1.0, 1.0, warnings=("image newer is damaged",))
    monkeypatch.setattr(appliance, "update_files", lambda *_, **__: known)
    ended = run(*words, "--from", "latest")
    assert (ended.code, "warning: image newer is damaged" in ended.out) == (3, True)


def test_move_that_was_interrupted_before_its_image_was_verified_is_ended_by_reconcile(
    site: FakeSite,
    run: Any,  # noqa: F811
    kvm: FakeKvmHost,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run("instant", "start", "web1", "--hold").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(steps, "verify_image", lambda *_: (_ for _ in ()).throw(StoreError("the store", "it is away")))
        assert run("instant", "keep", "web1").code != 0
    assert (kvm.moved, kvm.served) == (True, False)
    assert "has moved there; image" in run("status").err
    refusal = run("instant", "abandon", "web1", "--yes")
    assert "it has moved to its host and cannot be abandoned" in refusal.errors[0]
    assert kvm.active
    with image_of(site).open("r+b") as file:
        file.write(b"x")
    ended = run("reconcile")
    assert (ended.code, record_of(site)) == (3, None)
    assert "is in doubt" in ended.errors[0]


def test_abandon_asks_and_removes(
    site: FakeSite,
    run: Any,  # noqa: F811
    kvm: FakeKvmHost,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert run("instant", "start", "web1", "--hold").code == 0
    assert run("instant", "abandon", "web1").code == 130  # nobody answers
    assert record_of(site) is not None
    assert run("instant", "abandon", "web1", "--yes").code == 0
    assert (kvm.active, kvm.served, record_of(site)) == (False, False, None)


def test_image_that_proves_damaged_after_the_move_is_told(site: FakeSite, run: Any, kvm: FakeKvmHost) -> None:  # noqa: F811
    assert run("instant", "start", "web1", "--hold").code == 0
    image = image_of(site)
    with image.open("r+b") as file:
        file.write(b"x")
    ended = run("instant", "keep", "web1")
    assert ended.code == 3
    assert "is in doubt" in ended.errors[0]
    assert kvm.moved


def test_copy_of_an_older_image_is_said_to_be_that_and_one_with_other_disks_is_refused(
    site: FakeSite,
    run: Any,  # noqa: F811
    kvm: FakeKvmHost,
    tmp_path: Path,
) -> None:
    assert run("instant", "start", "web1", "--hold").code == 0
    record = record_of(site)
    assert record is not None
    (tmp_path / "vda.qcow2").write_bytes(b"x")
    disk = {"target": "vda", "file": "vda.qcow2", "format": "qcow2", "source": "/x", "virtual_size_bytes": 3 << 20}
    values = {"vm": "web1", "folder": tmp_path, "image": "older", "night": "n", "files": (), "files_changed": 1}
    values |= {"files_deleted": 0, "bytes_sent": 1, "warnings": ("image newer is damaged",), "disks": [disk]}
    copied = steps.from_copy(record, UpdatedImage.model_validate(values))
    assert (copied.image, copied.disks[0].size_bytes, copied.disks[0].served.format) == ("older", 3 << 20, "qcow2")
    assert warnings_of(copied) == ("image newer is damaged",)
    other = UpdatedImage.model_validate({**values, "disks": [{**disk, "target": "vdb"}]})
    with pytest.raises(RecoveryRefused, match="image older, which had to be taken, has disks vdb"):
        steps.from_copy(record, other)
