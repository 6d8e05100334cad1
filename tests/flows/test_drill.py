"""Drills as a flow and as commands: what could not run is no success, what was interrupted is seen and taken away."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks import drill as drilling
from tasks import places, recovery
from tasks.drivers import console, recovery_put
from tasks.drivers.drill_records import record
from tasks.drivers.store import Store
from tasks.errors import Unreachable
from tasks.model.drill import Drilled
from tasks.model.outcome import Outcome
from tasks.model.recovery_record import PutRecord
from tests.flows.fake_site import DOMAIN_XML, FakeSite
from tests.flows.test_commands import run  # noqa: F401 - a fixture
from tests.flows.test_recovery import Target, target  # noqa: F401 - fixtures

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


def test_drill_that_was_interrupted_is_seen_and_taken_away(site: FakeSite, drilled: Target, run: Any) -> None:  # noqa: F811
    left = PutRecord(
        run=recovery.new_run(),
        vm="web1",
        kvm_host="kvm1",
        name="gbs-drill-web1",
        uuid=DRILL_UUID,
        image="i",
        night="n",
        isolated=True,
        files=(),
    )
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
