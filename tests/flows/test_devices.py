"""Devices in a night: kept once while unchanged, changes shown without secrets, one that is down stays its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import CliRunner
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort

from flows.cli.coverage import coverage_command
from flows.cli.device import device_command
from flows.devices import devices as devices_flow
from flows.nightly import nightly as nightly_flow
from flows.replicate import replicate as replicate_flow
from flows.template_add import template_add as template_add_flow
from tasks import declaration
from tasks.drivers import appliance
from tasks.drivers import device as driver
from tasks.drivers.device import Configuration
from tasks.drivers.store import read_model, write_model
from tasks.errors import ClientsFailed, Unreachable
from tasks.model.facts import Facts
from tasks.model.manifest import DeviceManifest
from tasks.model.outcome import Outcome
from tasks.model.shape import shape_of_facts
from tests.flows.fake_site import FakeSite

devices: Any = devices_flow
nightly: Any = nightly_flow
replicate: Any = replicate_flow
template_add: Any = template_add_flow
CONFIG = "hostname sw1\nenable secret 5 $1$oops\nend\n"


class Fleet:
    """What the devices say now; an error breaks the call."""

    def __init__(self, site: FakeSite) -> None:
        self.site = site
        self.says: dict[str, Configuration | Exception] = {
            name: Configuration(CONFIG, CONFIG) for name in ("sw1", "sw2")
        }

    def fetch(self, target: Any, _profile: object) -> Configuration:
        said = self.says[target.name]
        if isinstance(said, Exception):
            raise said
        return said

    def stored(self, name: str) -> list[str]:
        return sorted(path.parent.name for path in (self.site.store / "devices" / name).glob("*/manifest.json"))


@pytest.fixture
def fleet(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    declared = site.declaration({"kvm1": {"address": "kvm1.test", "paths": ["/etc"]}}, site.clients())
    files = {"known_hosts_file": str(site.root / "known_hosts"), "password_file": str(site.root / "password")}
    declared["logins"] = {"default": {"user": "backup", **files}}
    declared["devices"] = {name: {"address": f"{name}.test", "type": "cisco_ios"} for name in ("sw1", "sw2")}
    site.inventory.write_text(json.dumps(declared))
    declaration.apply(declaration.load(site.inventory))
    made = Fleet(site)
    monkeypatch.setattr(driver, "fetch", made.fetch)
    ids = iter(f"202611{number:02}T000000Z" for number in range(1, 31))
    monkeypatch.setattr("tasks.devices.new_id", lambda _now: next(ids))
    return made


def artifact(key: str) -> str:
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        (newest,) = client.read_artifacts(artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC, limit=1)
    return str(newest.data)


def command(*words: str) -> str:
    return CliRunner().invoke(device_command, words, standalone_mode=False, catch_exceptions=False).output


def test_unchanged_configuration_is_kept_once_and_seen_again(fleet: Fleet) -> None:
    first = devices()
    assert [(result.client, result.outcome, bool(result.produced)) for result in first] == [
        ("sw1", Outcome.OK, True),
        ("sw2", Outcome.OK, True),
    ]
    (id_,) = fleet.stored("sw1")
    before = json.loads((fleet.site.store / f"devices/sw1/{id_}/manifest.json").read_text())
    assert [(result.outcome, result.produced) for result in devices()] == [(Outcome.OK, "")] * 2
    after = json.loads((fleet.site.store / f"devices/sw1/{id_}/manifest.json").read_text())
    assert fleet.stored("sw1") == [id_]
    assert after["first_seen"] == before["first_seen"]
    assert after["last_seen"] > before["last_seen"]
    for path in (fleet.site.store / f"devices/sw1/{id_}").glob("*.txt"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_text() == CONFIG


def test_change_is_kept_and_shown_without_the_secrets_that_are_kept(fleet: Fleet) -> None:
    devices()
    changed = CONFIG.replace("end", "vlan 7\nend").replace("$1$oops", "$1$new")
    fleet.says["sw1"] = Configuration(changed, CONFIG)
    result, _ = devices()
    assert (result.outcome, len(result.reasons)) == (Outcome.WARNING, 1)
    assert "would not start with" in result.reasons[0]
    shown = artifact("device-sw1")
    assert "+vlan 7" in shown
    assert "$1$" not in shown + command("diff", "sw1") + command("recipe", "sw1", "--id", fleet.stored("sw1")[0])
    assert "+vlan 7" in command("diff", "sw1")
    assert "-vlan 7" in command("recipe", "sw1", "--id", fleet.stored("sw1")[0])
    assert (fleet.site.store / "devices/sw1" / fleet.stored("sw1")[-1] / "running.txt").read_text() == changed
    rows = json.loads(command("list", "--json"))
    assert [(row["device"], row["unsaved"]) for row in rows] == [("sw1", True), ("sw1", False), ("sw2", False)]


def test_device_that_is_down_is_its_own_failure_in_the_night(fleet: Fleet) -> None:
    fleet.says["sw2"] = Unreachable("sw2", "no route to host")
    with pytest.raises(ClientsFailed, match="1 of 7 systems failed: sw2 device: sw2 is unreachable"):
        nightly()
    assert fleet.stored("sw1")
    assert (fleet.site.permanent / "web1/daily.0").is_dir()
    (kept,) = fleet.stored("sw1")
    replica = fleet.site.permanent / "_devices/sw1" / kept
    assert (replica / "running.txt").read_text() == (
        fleet.site.store / "devices/sw1" / kept / "running.txt"
    ).read_text()


def test_a_configuration_that_is_seen_again_is_replicated_once_and_told_when(fleet: Fleet) -> None:
    for _ in range(2):
        devices(["sw1"])
        replicate()
    (replica,) = (fleet.site.permanent / "_devices/sw1").glob("[!.]*")
    (kept,) = fleet.stored("sw1")
    assert (replica / "manifest.json").read_text() == (
        fleet.site.store / "devices/sw1" / kept / "manifest.json"
    ).read_text()


@pytest.mark.parametrize("lost", ["folders", "what is in them", "manifests"])
def test_what_the_store_has_lost_stays_in_the_permanent_store(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Templates, configurations and recovery sets; images, too."""
    store, permanent = fleet.site.store, fleet.site.permanent
    nightly()
    facts = read_model(store / "overnight/web1/facts.json", Facts)
    assert facts is not None
    monkeypatch.setattr(appliance, "shape_of", lambda *_, **__: shape_of_facts(facts))
    template_add("web1")
    fleet.says["sw1"] = Configuration(f"{CONFIG}!", CONFIG)
    devices()
    replicate()
    kinds = ("templates", "devices", "server", "images")
    command = ["find", *(f"_{kind}" for kind in kinds), "-type", "f", "-exec", "sha256sum", "{}", "+"]
    there = subprocess.run(command, cwd=permanent, check=True, capture_output=True, text=True).stdout
    for kind, count in zip(kinds, (1, 3, 1, 1), strict=True):
        assert len(set(re.findall(rf"_{kind}/.*/manifest\.json", there))) >= count
    for kind in kinds:
        if lost == "manifests":
            for path in (store / kind).rglob("manifest.json"):
                path.unlink()
        else:
            shutil.rmtree(store / kind)
            if lost != "folders":
                (store / kind).mkdir()
    for _ in range(2):
        replicate()
    subprocess.run(["sha256sum", "--check", "--quiet"], cwd=permanent, input=there, text=True, check=True)
    left = subprocess.run(["find", ".", "-name", ".[dt]*-*"], cwd=permanent, check=True, capture_output=True, text=True)
    assert left.stdout == "", "neither .delete- nor .trash-"


def test_night_of_one_client_leaves_devices_alone(fleet: Fleet) -> None:
    nightly(["db1"])
    assert not fleet.stored("sw1")


def test_device_never_seen_or_stale_is_a_gap(fleet: Fleet) -> None:
    devices(["sw1"])
    path = fleet.site.store / "devices/sw1" / fleet.stored("sw1")[0] / "manifest.json"
    manifest = DeviceManifest.model_validate_json(path.read_bytes())
    write_model(path, manifest.model_copy(update={"last_seen": datetime(2020, 1, 1, tzinfo=UTC)}))
    ended = CliRunner().invoke(coverage_command, ["--json"], standalone_mode=False)
    gaps = {row["subject"]: row["gap"] for row in json.loads(ended.output)}
    assert gaps["device sw2"] == "its configuration was never seen"
    assert gaps["device sw1"].startswith("it was last seen ")


def test_login_block_names_files(fleet: Fleet) -> None:
    block = declaration.documents(declaration.load(fleet.site.inventory))["login-default"]
    files = {"user": "backup", "password_file": fleet.site.root / "password"}
    assert {name: getattr(block, name) for name in files} == files
