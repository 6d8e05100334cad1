"""What nobody protects is said, and what is protected is not."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner

from flows.cli.coverage import coverage_command
from flows.nightly import nightly as nightly_flow
from tasks.errors import Unreachable
from tests.flows.fake_site import FakeSite

nightly: Any = nightly_flow


def gaps() -> tuple[int, dict[str, list[str]]]:
    ended = CliRunner().invoke(coverage_command, ["--json"], standalone_mode=False)
    found: dict[str, list[str]] = {}
    for row in json.loads(ended.output):
        found.setdefault(row["subject"], []).append(row["gap"])
    assert isinstance(ended.return_value, int)
    return ended.return_value, found


def test_only_what_is_left_out_is_a_gap(site: FakeSite) -> None:
    nightly()
    assert gaps() == (3, {"VM stray on kvm1": ["it is no client's: nothing of it is backed up"]})


def test_before_the_first_night_nothing_is_protected(site: FakeSite) -> None:
    _, found = gaps()
    assert found["VM web1"] == ["there is no image of it yet"]
    assert found["client db1"] == found["client web1"] == ["stage 0 has never run there"]


def test_file_systems_and_servers_that_are_left_out(site: FakeSite) -> None:
    site.running_engines = {"postgresql", "redis"}
    clients = site.clients()
    clients["db1"]["paths"] = ["/srv/app"]
    clients["web1"]["vm"] = "elsewhere"
    site.declare({"kvm1": {"address": "kvm1.test", "paths": ["/etc"]}}, clients)
    nightly(["db1"])
    facts = json.loads((site.store / "prepared/db1.json").read_text())
    facts["facts"]["file_systems"].append({**facts["facts"]["file_systems"][0], "mountpoint": "/data"})
    (site.store / "prepared/db1.json").write_text(json.dumps(facts))
    _, found = gaps()
    assert found["client db1"] == [
        "/data (ext4, 1 B used) is not pulled",
        "it runs redis, which the inventory does not declare: nothing dumps it",
    ]
    assert "its VM elsewhere is on no KVM host" in found["client web1"]


def test_host_that_is_down_is_a_gap_and_accuses_no_vm(site: FakeSite) -> None:
    nightly()
    site.fail("libvirt", "kvm1", Unreachable("kvm1", "no route to host"))
    _, found = gaps()
    assert found == {"KVM host kvm1": ["its VMs cannot be listed: kvm1 is unreachable: no route to host"]}
