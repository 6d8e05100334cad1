"""The recovery of a VM as a flow and as a command: assessed, asked for, approved, undone, gone on with."""

import contextlib
import json
import sys
import threading
import time
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect import resume_flow_run
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType

from flows import recover_vm as recover_vm_module
from flows import recovery_approval
from flows.kvmimg_get import kvmimg_get
from flows.nightly import nightly as nightly_flow
from flows.recover_vm import recover_vm as recover_vm_flow
from tasks import declaration, places, recovery
from tasks.drivers import appliance, instant_records, libvirt_host, recovery_files, recovery_put, recovery_target
from tasks.drivers.appliance import UpdateResult
from tasks.drivers.digest import record
from tasks.drivers.recovery_target import refused
from tasks.drivers.store import write_model
from tasks.errors import AccessDenied, LeftBehind, RecoveredPartly, RecoveryRefused
from tasks.model.assessment import Assessment, Finding
from tasks.model.domain_capabilities import Fit
from tasks.model.domain_recovery import run_of
from tasks.model.domain_xml import parse_domain
from tasks.model.instant import InstantState, InstantVm
from tasks.model.manifest import MANIFEST
from tasks.model.names import new_id
from tests.flows.fake_site import UUID, FakeSite
from tests.flows.test_commands import run  # noqa: F401 - a fixture
from tests.unit.records import put_record

nightly: Any = nightly_flow
recover_vm: Any = recover_vm_flow


class Target:
    """The KVM host as a recovery meets it: what was done there (`done`), what is in the way."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.clashes: list[Finding] = []
        self.made: Any = None
        self.xml = ""

    def place(self, _shell: object, _ledger: object, place: Any, source: Path, *_: Any, **__: Any) -> int:
        """Stands for recovery_put.place_file."""
        assert source.exists()
        self.done.append(f"place {place.role}")
        return 7

    def start(self, host: object, ledger: recovery_put.Ledger, xml: str, *_: Any, **__: Any) -> None:
        """Stands for recovery_put.define_and_start."""
        self.start_again(host, ledger, "start")
        self.xml = xml

    def start_again(self, _host: object, ledger: recovery_put.Ledger, did: str = "start again") -> None:
        """Stands for recovery_put.start."""
        self.done.append(did)
        if (record := ledger.read()) is not None:
            ledger.write(record.model_copy(update={"started": True}))

    def clear(self, _host: object, _shell: object, ledger: recovery_put.Ledger) -> list[str]:
        """Stands for recovery_put.clear."""
        self.done.append("clear")
        ledger.end()
        return []


@pytest.fixture
def target(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A site with a night and an image of web1 (its first is due), and an empty KVM host."""
    nightly(["kvm1", "web1"])
    found = Target()
    monkeypatch.setattr(recovery_target, "pools", lambda *_: {})
    monkeypatch.setattr(recovery_target, "clashes", lambda *_: list(found.clashes))
    monkeypatch.setattr(recovery_target, "room", lambda *_: [])
    monkeypatch.setattr(recovery_target, "capabilities", lambda *_, **__: (Fit(), []))
    monkeypatch.setattr(recovery_files, "identify", lambda _, paths: [None for _ in paths])
    monkeypatch.setattr(recovery_put, "place_file", found.place)
    monkeypatch.setattr(recovery_put, "define_and_start", found.start)
    monkeypatch.setattr(recovery_put, "start", found.start_again)
    monkeypatch.setattr(recovery_put, "clear", found.clear)
    monkeypatch.setattr(recovery_put, "made_by", lambda *_: found.made)
    monkeypatch.setattr(appliance, "update_files", lambda *_, **__: UpdateResult(1, 0, 4, 1.0, 1.0))
    return found


def test_recover_vm_without_a_terminal_only_assesses(site: FakeSite, target: Target, run: Any) -> None:  # noqa: F811
    ended = run("recover", "vm", "web1")
    assert (ended.code, target.done) == (0, [])
    assert "assessed only: nothing was changed; --yes goes on" in ended.err
    for word in ("image", "files of night", "VM web1 on kvm1", "unknown: no recovery was measured yet"):
        assert word in " ".join(ended.out.split())
    assessment = Assessment.model_validate_json(run("recover", "vm", "web1", "--json", "--as", "web2").out)
    assert assessment.plan.identity.name == "web2"
    assert {finding.subject for finding in assessment.findings} == {"guest", "wait"}
    target.clashes = [refused("name", "kvm1 has a VM of that name", "rename it"), refused("room", "there is none", "x")]
    for words in ((), ("--yes",)):
        ended = run("recover", "vm", "web1", *words)
        assert (ended.code, target.done) == (1, [])
        assert "REFUSED" in ended.out
        said = "error: recovery of VM web1 refused: kvm1 has a VM of that name; room: there is none; x: rename it"
        assert ended.errors == [said]
    assert run("recover", "vm", "web1", "--network", "nosuch").code == 2


def test_recover_vm_with_yes_acts_and_later_ones_are_expected_by_it(
    site: FakeSite,
    target: Target,
    run: Any,  # noqa: F811
) -> None:
    ended = run("recover", "vm", "web1", "--yes", "--json")
    assert ended.code == 0, ended.err
    recovered = json.loads(ended.out)
    assert target.done == ["place vda", "start"]
    assert run_of(target.xml), "the VM bears the id of its recovery"
    steps = [step["name"] for step in recovered["steps"]]
    assert steps == ["update image with files", "send disks", "define and start", "wait for the guest"]
    assert not list((site.store / "recovery").rglob("*")), "no working copy and no record is left"
    assessment = recover_vm("web1", dry_run=True)
    assert assessment.unknown == ()
    assert {step.by.partition(",")[0] for step in assessment.expected} == {"1 recoveries of web1 to kvm1"}


def test_recovery_of_a_vm_that_does_not_answer_is_undone(site: FakeSite, target: Target) -> None:
    site.fail("answer", "web1", AccessDenied("web1", "login failed", "authorise the key"))
    with pytest.raises(AccessDenied):
        recover_vm("web1")
    assert target.done == ["place vda", "start", "clear"]
    assert not list((site.store / "recovery").rglob("*"))


def test_second_vm_is_waited_for_by_its_agent_and_never_reached_by_the_first_ones_address(
    site: FakeSite, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = types.SimpleNamespace(call=lambda *_: True)
    host = types.SimpleNamespace(name="kvm1", domain=lambda _: running)
    monkeypatch.setattr(libvirt_host, "connect", lambda *_: contextlib.nullcontext(host))
    recovered = recover_vm("web1", as_name="web2")
    assert (recovered.name, target.done) == ("web2", ["place vda", "start"])
    assert recovered.uuid != UUID
    assert site.count("answer", "web1") == 0
    assert "<name>web2</name>" in target.xml


def test_recovery_while_the_old_system_answers_is_refused_and_one_beside_it_is_not(
    site: FakeSite, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.answering = {"web1"}
    (said,) = recover_vm("web1", dry_run=True).refusals
    assert (said.subject, said.reason) == ("client", "web1 still answers at its address")
    with pytest.raises(RecoveryRefused, match=r"web1 still answers at its address: switch it off, or .* or --as$"):
        recover_vm("web1")
    assert target.done == []
    assert recover_vm("web1", as_name="web2", dry_run=True).refusals == ()
    site.answering = set()
    place = target.place

    def comes_back(*given: Any, **options: Any) -> int:
        site.answering = {"web1"}
        return place(*given, **options)

    monkeypatch.setattr(recovery_put, "place_file", comes_back)
    with pytest.raises(RecoveryRefused, match="client web1 refused: something answers at its address"):
        recover_vm("web1")
    assert target.done == ["place vda", "clear"], "it was back before the VM was started"
    assert site.count("answer", "web1") == 0


def newer_and_damaged() -> str:
    """Take one more image of web1, and damage it; its id."""
    ((folder, older),) = places.store().images_of("web1")
    while new_id(datetime.now(UTC)) <= older.id:
        time.sleep(0.05)
    newer = kvmimg_get("web1", full=True)
    with (folder.parent / newer.id / newer.disks[0].file).open("r+b") as file:
        file.write(b"damage")
    return str(newer.id)


def test_recovery_with_a_warning_ends_with_exit_code_3(site: FakeSite, target: Target, run: Any) -> None:  # noqa: F811
    damaged = newer_and_damaged()
    ended = run("recover", "vm", "web1", "--yes")
    assert ended.code == 3
    assert (damaged in ended.out, "was taken instead" in " ".join(ended.out.split())) == (True, True)


def test_an_older_image_that_had_to_be_taken_comes_back_with_its_own_disks_and_parts(
    site: FakeSite, target: Target
) -> None:
    ((folder, older),) = places.store().images_of("web1")
    newer_and_damaged()
    (folder / "kernel").write_bytes(b"kernel")
    disk = older.disks[0].model_copy(update={"source": "/images/older.qcow2", "source_format": "qcow2"})
    parts = older.parts.model_copy(update={"files": {"kernel": "kernel"}})
    changed = {"disks": (disk,), "parts": parts, "files": (*older.files, record(folder / "kernel", folder))}
    write_model(folder / MANIFEST, older.model_copy(update=changed))
    recovered = recover_vm("web1")
    assert (recovered.image, recovered.disks[0].path) == (older.id, "/images/older.qcow2")
    assert target.done == ["place vda", "place kernel", "start"]
    (got,) = parse_domain(target.xml).disks
    assert (got.source, got.format) == ("/images/older.qcow2", "qcow2")
    (warning,) = recovered.warnings
    assert f"image {older.id} was taken instead" in warning
    assert recovered.problems == ()


def test_second_vm_that_another_host_has_is_refused_unless_it_is_isolated(
    site: FakeSite, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.declare({name: {"address": f"{name}.test", "paths": ["/etc"]} for name in ("kvm1", "kvm2")}, site.clients())
    declaration.apply(declaration.load(site.inventory))
    places.forget_blocks()
    monkeypatch.setattr(
        recovery_target, "known", lambda host, _: types.SimpleNamespace(name="web2") if host.name == "kvm2" else None
    )
    (said,) = recover_vm("web1", as_name="web2", dry_run=True).refusals
    assert said.reason == "kvm2 has VM web2: its name, UUID and MACs would be there twice"
    assert recover_vm("web1", as_name="web2", isolated=True, dry_run=True).refusals == ()


def test_recovery_that_was_cut_off_is_told_until_it_is_ended(
    site: FakeSite,
    target: Target,
    run: Any,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    assessment = recover_vm("web1", dry_run=True)
    copy = site.store / "recovery/web1/copy"
    copy.mkdir(parents=True)
    known = {"uuid": UUID, "image": assessment.image, "night": assessment.night}
    cut_off = put_record(run=recovery.new_run(), **known, started=True, working_copy=str(copy))
    recovery.ledger("kvm1", UUID).write(cut_off)
    of_drill = {"name": "gbs-drill-web1", "uuid": UUID.replace("6d", "7d"), "isolated": True, "working_copy": None}
    left = recovery.ledger("kvm1", UUID.replace("6d", "7d"))
    left.write(cut_off.model_copy(update=of_drill))
    command = f"gbs recover vm web1 --from {assessment.night} --to kvm1"
    goes_on = "goes on with its VM, which may be in use, and loads no dumps over it"
    told = f"the recovery of web1 to kvm1 was cut off; {command} {goes_on}"
    drilled = "the drill of VM web1 was interrupted and gbs-drill-web1 is left on kvm1; gbs reconcile takes it away"
    ended = run("status")
    assert ended.code == 3
    assert {told, drilled} <= set(ended.err.splitlines())
    assert run("reconcile").code == 0
    assert told in caplog.messages
    assert left.read() is None, "nobody uses a drill's VM"
    with places.locked("vm", UUID):
        assert told not in run("status").err, "a run works on it"
    target.made = types.SimpleNamespace(call=lambda *_: True)
    recover_vm("web1")
    assert not copy.exists()
    ended = run("status")
    assert "cut off" not in ended.err


def test_recovery_that_is_cut_off_while_it_serves_is_gone_on_with(
    site: FakeSite, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(recover_vm_module, "serve", lambda *_: sys.exit(9))
        with pytest.raises(BaseException, match="9"):
            recover_vm("web1")
    assert target.done == ["place vda", "start"], "it may be in use: nothing is undone"
    target.made = types.SimpleNamespace(call=lambda *_: True)
    assert recover_vm("web1").name == "web1"
    assert target.done == ["place vda", "start", "start again"]
    assert recovery.ledger("kvm1", UUID).read() is None


def test_recovery_that_is_gone_on_with_keeps_its_warnings_and_measures_nothing(
    site: FakeSite,
    target: Target,
    run: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damaged, expected = newer_and_damaged(), recover_vm("web1", dry_run=True).expected
    with monkeypatch.context() as patch:
        patch.setattr(recover_vm_module, "serve", lambda *_: sys.exit(9))
        with pytest.raises(BaseException, match="9"):
            recover_vm("web1")
    record = recovery.ledger("kvm1", UUID).read()
    assert record is not None
    recovery.ledger("kvm1", UUID).write(record.model_copy(update={"dropped": ("a host device",)}))
    target.made = types.SimpleNamespace(call=lambda *_: True)
    ended = run("recover", "vm", "web1", "--yes", "--json")
    done = json.loads(ended.out)
    assert (ended.code, done["dropped"], done["gone_on"]) == (3, ["a host device"], True)
    (warning,) = done["warnings"]
    assert damaged in warning
    target.made = None
    assert recover_vm("web1", dry_run=True).expected == expected


def test_vm_of_a_killed_run_is_not_started_while_it_is_held_in_the_store_of_another_host(
    site: FakeSite, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(recovery_put, "define_and_start", lambda *_, **__: sys.exit(9))
        patch.setattr(recovery_put, "clear", lambda *_: [])  # as if it had been killed
        with pytest.raises(BaseException, match="9"):
            recover_vm("web1")
    target.made = types.SimpleNamespace(call=lambda *_: False)
    assert recovery_put.unfinished(places.store())[0].started is False
    held = InstantVm(
        run="other",
        vm="web1",
        uuid=UUID,
        kvm_host="kvm2",
        image="image",
        image_folder=site.store,
        night=None,
        state=InstantState.OFF,
        started=datetime.now(UTC),
        disks=(),
        xml="",
        dropped=(),
    )
    instant_records.write(places.store(), held, InstantState.OFF)
    with pytest.raises(RecoveryRefused, match="it has run from the store on kvm2 and is off"):
        recover_vm("web1")
    assert "start again" not in target.done
    instant_records.forget(places.store(), held)
    assert recover_vm("web1").gone_on


@pytest.fixture
def loading(site: FakeSite, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The dumps that were loaded into web1, which has two engines; the second's break off."""
    engines = [{"engine": "postgresql"}, {"engine": "redis"}]
    clients = site.clients() | {"web1": {"address": "web1.test", "vm": "web1", "databases": engines}}
    site.declare({"kvm1": {"address": "kvm1.test", "paths": ["/etc"]}}, clients)
    request.getfixturevalue("target").made = types.SimpleNamespace(call=lambda *_: True)
    loaded: list[str] = []
    real = recovery.restore_databases
    monkeypatch.setattr(recovery, "bring_back", lambda *given: loaded.append(given[2]))

    def restore(client: str, called: str, dumps: Any) -> Any:
        return sys.exit(9) if called == "redis" and not loaded[1:] else real(client, called, dumps)

    monkeypatch.setattr(recovery, "restore_databases", restore)
    return loaded


def test_dumps_that_a_killed_run_had_loaded_are_not_loaded_over_what_was_written_since(
    site: FakeSite, loading: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loading += ["redis of an earlier one", "and another"]
    with monkeypatch.context() as patch:
        patch.setattr(recovery, "keep", lambda *_: sys.exit(9))
        with pytest.raises(BaseException, match="9"):
            recover_vm("web1")
    assert loading[2:] == ["postgresql", "redis"]
    (said,) = recover_vm("web1", dry_run=True).findings
    assert said.reason == (
        "it did not end: its VM is gone on with, which may be in use; the night's dumps are not loaded over it"
    )
    recovered = recover_vm("web1")
    assert loading[2:] == ["postgresql", "redis"], "somebody may have written since"
    assert "postgresql shop" in recovered.databases
    assert "restore databases" not in [step.name for step in recovered.steps]
    assert recovered.problems == ()


def test_dumps_of_which_it_is_not_known_whether_a_killed_run_had_loaded_them_are_told(
    site: FakeSite,
    loading: list[str],
    run: Any,  # noqa: F811
) -> None:
    with pytest.raises(BaseException, match="9"):
        recover_vm("web1")
    assert loading == ["postgresql"]
    (said,) = recover_vm("web1", dry_run=True).findings
    assert said.reason.endswith("not loaded over it, and it is not known whether redis came back")
    loading += ["redis would go on now"]
    ended = run("recover", "vm", "web1", "--yes")
    assert loading[2:] == []
    assert ended.code == 3
    (error,) = ended.errors
    assert "error: VM web1 runs on kvm1, but: recovery of redis of web1 refused: an earlier run started" in error
    assert "from /var/backups/gbs/redis" in error
    assert recovery.ledger("kvm1", UUID).read() is None


def test_databases_of_a_vm_that_was_never_reached_are_told_with_the_command(
    site: FakeSite, loading: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(recover_vm_module, "_wait", lambda *_: sys.exit(9))
        patch.setattr(recovery, "undo", lambda *_: None)
        with pytest.raises(BaseException, match="9"):
            recover_vm("web1")
    with pytest.raises(RecoveredPartly) as partly:
        recover_vm("web1")
    assert loading == []
    of_postgresql, of_redis = partly.value.args[2]
    assert "for each of shop: gbs recover database web1 NAME --engine postgresql --from 2" in of_postgresql
    assert "redis of web1" in of_redis


def test_vm_whose_link_is_down_is_not_waited_for_by_ssh(
    site: FakeSite, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = types.SimpleNamespace(call=lambda *_: True)
    host = types.SimpleNamespace(name="kvm1", domain=lambda _: running)
    monkeypatch.setattr(libvirt_host, "connect", lambda *_: contextlib.nullcontext(host))
    (said,) = recover_vm("web1", networks=["lan=none"], dry_run=True).findings
    assert said.words == (
        "wait: not reached by its client's address: waited for no longer than that it runs: "
        "it has no guest agent's channel"
    )
    assert recover_vm("web1", networks=["lan=none"]).name == "web1"
    assert target.done == ["place vda", "start"]
    assert site.count("answer", "web1") == 0


def test_recovery_that_was_killed_is_gone_on_with_or_cleared_first(site: FakeSite, target: Target) -> None:
    def left(**changed: Any) -> None:
        assessment = recover_vm("web1", dry_run=True)
        plan = assessment.plan
        values = {"image": assessment.image, "night": assessment.night, **changed}
        recovery.ledger(plan.kvm_host, UUID).write(put_record(uuid=UUID, **values))

    left()
    target.made = types.SimpleNamespace(call=lambda *_: True)
    site.answering, target.clashes = {"web1"}, [refused("UUID", "it is there", "x")]
    assert recover_vm("web1", dry_run=True).refusals == (), "it is the VM that answers"
    with pytest.raises(RecoveryRefused, match="web1 still answers at its address"):
        recover_vm("web1")  # its libvirt is a fake that says of every VM that it does not run
    site.answering, target.clashes = set(), []
    recovered = recover_vm("web1")
    assert (target.done, recovered.name) == (["start again"], "web1")
    assert recovery.ledger("kvm1", UUID).read() is None
    left(night="20200101T000000Z")
    with pytest.raises(RecoveryRefused, match=r"an earlier run started it on kvm1 .*, night 20200101T000000Z"):
        recover_vm("web1")
    assert [each.subject for each in recover_vm("web1", dry_run=True).refusals] == ["earlier run"]
    assert target.done == ["start again"]
    target.made = None
    target.clashes = [refused("file of vda", "it exists", "move it")]
    assessment = recover_vm("web1", dry_run=True)
    assert [each.subject for each in assessment.refusals] == ["file of vda"], "what is not the earlier run's own"
    target.clashes = []
    assert [each.words for each in recover_vm("web1", dry_run=True).findings] == [
        "earlier run: it did not end: what it put on kvm1 is removed first"
    ]
    recover_vm("web1")
    assert target.done == ["start again", "clear", "place vda", "start"]


def test_vm_that_a_killed_run_had_started_is_never_removed(site: FakeSite, target: Target) -> None:
    def left(**changed: Any) -> None:
        assessment = recover_vm("web1", dry_run=True)
        values = {"image": assessment.image, "night": assessment.night, "started": True} | changed
        recovery.ledger("kvm1", UUID).write(put_record(uuid=UUID, **values))

    target.made = types.SimpleNamespace(call=lambda *_: False)
    for other in ({"night": "20200101T000000Z"}, {"isolated": True}, {"networks": {"lan": "user"}}):
        left(**other)
        with pytest.raises(RecoveryRefused, match="it may be in use: go on with that one"):
            recover_vm("web1")
    left(image="an older one")
    site.fail("answer", "web1", AccessDenied("web1", "login failed", "authorise the key"))
    with pytest.raises(LeftBehind, match="VM web1 on kvm1, of an earlier run, was left behind: web1 refused"):
        recover_vm("web1")
    assert target.done == ["start again"]
    assert recover_vm("web1").name == "web1"
    assert recovery.ledger("kvm1", UUID).read() is None


@pytest.mark.parametrize("approve", [True, False])
def test_recovery_waits_for_approval_with_nothing_done(
    site: FakeSite, target: Target, monkeypatch: pytest.MonkeyPatch, approve: bool
) -> None:
    monkeypatch.setattr(recovery_approval, "POLL_S", 1)
    seen: list[Any] = []

    def answer() -> None:
        paused = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
        ends_at = time.monotonic() + 60
        with get_client(sync_client=True) as client:
            while not (found := client.read_flow_runs(flow_run_filter=paused)) and time.monotonic() < ends_at:
                time.sleep(0.2)
        seen.extend(target.done)
        resume_flow_run(found[0].id, run_input={"approve": approve})

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        if approve:
            assert recover_vm("web1", approval=True).name == "web1"
        else:
            with pytest.raises(RecoveryRefused, match="it was not approved"):
                recover_vm("web1", approval=True)
    finally:
        thread.join()
    assert seen == []
    assert target.done == (["place vda", "start"] if approve else [])
