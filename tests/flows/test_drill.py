"""Drills as a flow and as commands: what could not run is no success, what was interrupted is seen and taken away."""

import json
import types
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flows import drill as drill_module
from tasks import drill as drilling
from tasks import places, recovery
from tasks.drivers import appliance, console, recovery_put
from tasks.drivers.appliance import UpdateResult
from tasks.drivers.drill_records import record
from tasks.drivers.store import Store
from tasks.errors import Unreachable
from tasks.model.drill import Drilled, UnfinishedDrill
from tasks.model.outcome import Outcome
from tasks.model.recovery_record import PutRecord
from tests.flows.fake_site import DOMAIN_XML, FakeSite
from tests.flows.test_commands import run  # noqa: F401 - a fixture
from tests.flows.test_recovery import Target, newer_and_damaged, target  # noqa: F401 - fixtures
from tests.unit.records import put_record

DRILL_UUID = "11111111-2222-4333-8444-555555555555"
_CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"


@pytest.fixture
def drilled(site: FakeSite, request: pytest.FixtureRequest) -> Target:
    """A site whose web1 has a guest agent's channel, with a night and an image of it."""
    xml = DOMAIN_XML.replace("</devices>", f"{_CHANNEL}</devices>")
    site.files["kvm1"]["/etc/libvirt/qemu/web1.xml"] = xml.encode()
    found: Target = request.getfixturevalue("target")
    return found


def listed(run: Any) -> list[dict[str, Any]]:  # noqa: F811
    rows: list[dict[str, Any]] = json.loads(run("list", "drills", "--json").out)
    return rows


def test_name_of_no_vm_is_said_before_any_drill_begins(site: FakeSite, drilled: Target, run: Any) -> None:  # noqa: F811
    ended = run("drill", "web1", "nosuch")
    assert (ended.code, drilled.done, listed(run)) == (2, [], [])
    assert "no VM named 'nosuch'" in ended.errors[0]


def test_vm_that_another_run_has_was_not_drilled_and_has_its_turn_again(
    site: FakeSite,
    drilled: Target,
    run: Any,  # noqa: F811
) -> None:
    site.policies = {"default": {"drill_days": 30}}
    site.declare({"kvm1": {"address": "kvm1.test", "paths": ["/etc"]}}, site.clients())
    with places.locked("client", "web1"):
        ended = run("drill", "web1")
    assert (ended.code, drilled.done) == (1, [])
    assert "client web1 is locked by another run: pid" in ended.err
    (row,) = listed(run)
    assert row["outcome"] == "MISSED"
    assert drilling.vms_due() == ["web1"]
    past = datetime.now(UTC) - timedelta(days=1)
    told = Drilled(id="1", vm="web1", client="web1", kvm_host="", started=past, ended=past, outcome=Outcome.FAILED)
    record(Store(site.store), told, b"")
    assert drilling.vms_due() == [], "whose drill failed is not drilled every night for it"


def test_picture_that_cannot_be_taken_hides_nothing(
    site: FakeSite,
    drilled: Target,
    run: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_domain: object) -> bytes:
        raise Unreachable("kvm1", "the connection broke")

    monkeypatch.setattr(console, "picture", broken)
    monkeypatch.setattr(recovery_put, "isolate", lambda *_: None)
    ended = run("drill", "web1")
    assert (ended.code, drilled.done) == (1, ["place vda", "start", "clear"])
    (row,) = listed(run)
    assert (row["outcome"], "it does not run any more" in row["reason"]) == ("FAILED", True)
    (manifest,) = site.store.glob("drills/web1/*/manifest.json")
    told = Drilled.model_validate_json(manifest.read_bytes())
    assert (told.screenshot, "the connection broke" in told.unseen) == ("", True)


def drill_record(kvm_host: str) -> PutRecord:
    name = "gbs-drill-web1"
    return put_record(run=recovery.new_run(), kvm_host=kvm_host, name=name, uuid=DRILL_UUID, isolated=True)


def test_drill_that_was_interrupted_is_seen_and_taken_away(site: FakeSite, drilled: Target, run: Any) -> None:  # noqa: F811
    left = drill_record("kvm1")
    recovery.ledger("kvm1", DRILL_UUID).write(left)
    with places.locked("vm", DRILL_UUID):
        assert [row["outcome"] for row in listed(run)] == ["running"]
        assert run("reconcile").code == 0
        assert "interrupted" not in run("status").err
    assert drilled.done == []
    told = run("status")
    assert told.code == 3
    assert "the drill of VM web1 was interrupted and gbs-drill-web1 is left on kvm1; gbs reconcile" in told.err
    assert [row["outcome"] for row in listed(run)] == ["INTERRUPTED"]
    assert run("reconcile", "db1").code == 0
    assert drilled.done == []
    assert run("reconcile").code == 0
    assert drilled.done == ["clear"]
    (row,) = listed(run)
    assert (row["outcome"], row["reason"]) == ("MISSED", "it was interrupted; what it left on kvm1 was taken away")
    assert "interrupted" not in run("status").err


def test_drill_left_on_a_host_that_is_declared_no_more_blocks_no_other_and_its_record_is_told(
    site: FakeSite,
    drilled: Target,
    run: Any,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Symptom: once its KVM host was taken from the inventory, no drill of that VM ran any more."""
    left = drill_record("gone")
    recovery.ledger("gone", DRILL_UUID).write(left)
    plan: Any = types.SimpleNamespace(kvm_host="kvm1", identity=types.SimpleNamespace(uuid=DRILL_UUID))
    drill_module._clear(plan)
    assert any("gbs-drill-web1 is left on gone" in message for message in caplog.messages)
    ended = run("reconcile")
    (told,) = ended.errors
    assert "gbs-drill-web1 on gone was left behind: no KVM host named 'gone': known are kvm1" in told
    record = recovery.ledger("gone", DRILL_UUID).path.relative_to(site.store)
    assert f"remove {record} from the store" in told


@pytest.fixture
def proving(site: FakeSite, drilled: Target, monkeypatch: pytest.MonkeyPatch) -> Target:
    """The drill's VM runs, its agent answers, and it has a probe that holds."""
    clients = site.clients() | {"web1": {"address": "web1.test", "vm": "web1", "probes": [{"command": ["true"]}]}}
    site.declare({"kvm1": {"address": "kvm1.test", "paths": ["/etc"]}}, clients)
    monkeypatch.setattr(recovery, "wait_for_agent", lambda *_: None)
    monkeypatch.setattr(drilling, "probe", lambda *_: "true: 0")
    monkeypatch.setattr(console, "picture", lambda _: b"picture")
    monkeypatch.setattr(recovery_put, "isolate", lambda *_: None)
    return drilled


def test_drill_that_ended_and_could_not_be_undone_is_not_said_to_be_interrupted_once_it_is(
    site: FakeSite,
    proving: Target,
    run: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(_: Any) -> None:
        raise Unreachable("kvm1", "no route")

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "undo", silent)
        assert run("drill", "web1").code == 1
    assert run("reconcile").code == 0
    assert proving.done[-1] == "clear"
    assert [row["outcome"] for row in listed(run)] == ["FAILED"]


def test_drill_of_an_older_image_than_the_newest_proves_nothing_of_that(
    site: FakeSite,
    proving: Target,
    run: Any,  # noqa: F811
) -> None:
    damaged = newer_and_damaged()
    ended = run("drill", "web1")
    assert ended.code == 3
    (row,) = listed(run)
    assert (row["outcome"], damaged in row["reason"]) == ("WARNING", True)
    (status,) = (row for row in json.loads(run("status", "--json").out) if row["client"] == "web1")
    assert status["proven restorable"] == "never"


def test_drill_of_an_image_that_lacks_nothing_it_needs_is_proof_with_what_is_to_be_known(
    site: FakeSite,
    proving: Target,
    run: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = UpdateResult(1, 0, 4, 1.0, 1.0, warnings=("/mnt is not in the image: it boots without (nofail)",))
    monkeypatch.setattr(appliance, "update_files", lambda *_, **__: known)
    assert run("drill", "web1").code == 0
    (row,) = listed(run)
    assert (row["outcome"], row["reason"]) == ("OK", known.warnings[0])


def test_drill_left_on_a_host_that_is_not_reached_is_not_said_to_run(
    site: FakeSite, proving: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = UnfinishedDrill(
        vm="web1",
        name="gbs-drill-web1",
        uuid="u",
        kvm_host="kvm9",
        image="i",
        night="n",
        since=datetime.now(UTC),
        runs=True,
    )
    plan: Any = types.SimpleNamespace(kvm_host="kvm1", identity=types.SimpleNamespace(uuid="u"))
    monkeypatch.setattr(drilling, "unfinished", lambda: [left])

    def silent(_: UnfinishedDrill) -> None:
        raise Unreachable("kvm9", "no route")

    monkeypatch.setattr(drilling, "clear", silent)
    drill_module._clear(plan)
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("the drill of VM web1 was interrupted and gbs-drill-web1 is left on kvm9; gbs reconcile")
    assert "no route" in said
