"""A definition for a physical client: golden, and valid by libvirt's own schema."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import RecoveryRefused
from tasks.model.facts import Facts
from tasks.model.facts_network import Address, Interface
from tasks.model.physical_definition import Machine, physical_definition, target_of, uuid_of
from tests.unit.test_domain_xml import HOSTILE, same_as_golden
from tests.unit.test_facts import facts

GOLDEN = Path(__file__).parent / "golden" / "domain"
_MAC = "3c:ec:ef:00:00:0{}"
_CARDS = (
    Interface(name="lo", kind="loopback", mtu=65536),
    Interface(name="eno1", mac=_MAC.format(1), mtu=1500, addresses=(Address(address="192.0.2.7/24"),)),
    Interface(name="eno2", mac=_MAC.format(2), mtu=1500),
    Interface(name="eno3", mac=_MAC.format(3), mtu=1500),
    Interface(name="vlan7", kind="vlan", mac=_MAC.format(3), mtu=1500, link="eno3", vlan_id=7),
)


def physical(**values: Any) -> Facts:
    machine: dict[str, Any] = {"machine_id": "f" * 32, "memory": 16_600_000_000, "processors": 8, "interfaces": _CARDS}
    return facts(**{**machine, **values})


def made(client: Facts, name: str = "files1") -> str:
    paths = ["/images/files1-vda.qcow2", "/images/files1-vdb.qcow2"]
    return physical_definition(client, name=name, disks=paths, machine=Machine("bridge:br0"))


def valid(text: str, tmp_path: Path) -> bool:
    path = tmp_path / "domain.xml"
    path.write_text(text, "utf-8")
    return subprocess.run(["virt-xml-validate", path, "domain"], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("mode", ["bios", "uefi"])
def test_definition_is_valid_and_as_written(mode: str, tmp_path: Path) -> None:
    text = made(physical(efi=mode == "uefi"))
    assert valid(text, tmp_path)
    same_as_golden(GOLDEN / f"physical.{mode}.out.xml", text)


def test_hostile_names_stay_data(tmp_path: Path) -> None:
    for name in HOSTILE:
        assert valid(made(physical(), name), tmp_path), name


def test_a_second_recovery_has_the_same_uuid_and_another_client_another() -> None:
    assert uuid_of(physical()) == uuid_of(physical(kernel="6.12"))
    assert uuid_of(physical()) != uuid_of(physical(machine_id="e" * 32))


def test_facts_of_an_older_night_want_memory_and_processors_said() -> None:
    with pytest.raises(RecoveryRefused, match="--memory"):
        made(physical(memory=None))


def test_targets_go_on_after_z() -> None:
    assert [target_of(number) for number in (0, 25, 26, 701, 702)] == ["vda", "vdz", "vdaa", "vdzz", "vdaaa"]
