"""The inventory's rules that need no file."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.model.inventory import Inventory, Policy
from tasks.model.platform import PROFILES, Platform
from tasks.model.retention import Retain


def inventory(**changed: Any) -> Inventory:
    values: dict[str, Any] = {
        "store": {"path": "/srv/gbs"},
        "permanent": {"path": "/mnt/gbs", "store_id": "far", "kind": "local"},
        "identities": {"default": {"private_key_file": "/k", "known_hosts_file": "/h"}},
    }
    return Inventory.model_validate(values | changed)


def test_systems_are_hosts_before_clients() -> None:
    made = inventory(clients={"a": "a"}, kvm_hosts={"z": "z"})
    assert list(made.systems) == ["z", "a"]


def test_vms_name_their_clients() -> None:
    made = inventory(clients={"a": {"address": "a", "vm": "VM 1"}, "b": "b"})
    assert made.vms == {"VM 1": "a"}


@pytest.mark.parametrize(
    ("policy", "retain"),
    [
        (Policy(), (Retain("daily", 14), Retain("weekly", 4), Retain("monthly", 3))),
        (Policy(monthly=0), (Retain("daily", 14), Retain("weekly", 4))),
        (Policy(daily=2, weekly=0, monthly=0), (Retain("daily", 2),)),
    ],
)
def test_retain_leaves_out_what_is_zero(policy: Policy, retain: tuple[Retain, ...]) -> None:
    assert policy.rules.retain == retain


def test_declared_default_policy_replaces_the_built_in_one() -> None:
    made = inventory(clients={"a": "a"}, policies={"default": {"daily": 5}})
    assert made.policy_of(made.clients["a"]).daily == 5
    assert made.mistakes() == []


def test_every_platform_has_excludes() -> None:
    assert set(PROFILES) == set(Platform)


def test_no_identity_at_all_is_refused() -> None:
    with pytest.raises(ValidationError, match="identities"):
        inventory(identities={})


@pytest.mark.parametrize("uri", ["qemu+ssh://x/system", "test:///default", "qemu:///system?socket=/tmp/x", ""])
def test_libvirt_uri_that_leads_elsewhere_is_refused(uri: str) -> None:
    with pytest.raises(ValidationError, match="libvirt_uri"):
        inventory(kvm_hosts={"k": {"address": "k", "libvirt_uri": uri}})


@pytest.mark.parametrize(
    ("database", "problem"),
    [
        ({"engine": "oracle"}, "Input should be"),
        ({"engine": "sqlite"}, "absolute paths of its files"),
        ({"engine": "sqlite", "names": ["shop.db"]}, "absolute paths of its files"),
        ({"engine": "postgresql", "command": ["true"]}, "are of engine command"),
        ({"engine": "command", "names": ["a"], "command": ["true"]}, "needs names"),
        ({"engine": "command", "names": ["a", "b"], "command": ["true"], "produces": ["x"]}, "needs names"),
        ({"engine": "command", "names": ["a"], "command": ["true"], "produces": ["../x"]}, "without a folder"),
        ({"engine": "command", "names": ["a"], "command": ["t"], "produces": ["x"], "login": "/l"}, "no login"),
    ],
)
def test_database_that_does_not_fit_its_engine_is_refused(database: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        inventory(clients={"a": {"address": "a", "databases": [database]}})


def test_engine_stands_once_and_commands_by_their_names() -> None:
    command = {"engine": "command", "command": ["dump"], "produces": ["x"]}
    twice = [{**command, "names": ["a"]}, {**command, "names": ["b"]}]
    client = inventory(clients={"a": {"address": "a", "databases": twice}}).clients["a"]
    assert [database.called for database in client.databases] == ["command a", "command b"]
    for databases in ([twice[0], twice[0]], [{"engine": "mariadb"}, {"engine": "mariadb", "names": ["x"]}]):
        with pytest.raises(ValidationError, match="may stand once"):
            inventory(clients={"a": {"address": "a", "databases": databases}})


@pytest.mark.parametrize(
    "asked", [{"snapshot": "zfs"}, {"snapshot": True}, {"snapshot_room_percent": 0}, {"snapshot_room_percent": 101}]
)
def test_snapshot_that_nobody_can_make_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(asked))):
        inventory(clients={"a": {"address": "a", **asked}})


def test_snapshots_are_made_only_if_asked_for() -> None:
    client = inventory(clients={"a": "a"}).clients["a"]
    assert (client.snapshot, client.snapshot_room_percent) == ("none", 10)
