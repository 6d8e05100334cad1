"""The definition of a VM among the KVM hosts' backup data: which of several is the VM."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.drivers import definitions
from tasks.drivers.digest import sha256_file, write_listing
from tasks.drivers.store import Store, write_model
from tasks.errors import NothingToRecover
from tasks.model.domain_recovery import rewrite_for_recovery
from tasks.model.domain_whitelist import Wishes
from tasks.model.manifest import LISTING, MANIFEST
from tasks.model.recovery_plan import ISOLATED
from tests.unit.records import night_manifest

FOLDER = "/etc/libvirt/qemu"
UUID = "90a82260-1496-49c7-872c-574b9ce0acc3"
CARD = "<interface type='bridge'><source bridge='br0'/><mac address='52:54:00:aa:00:02'/></interface>"


def definition(card: str = CARD) -> str:
    system = "<memory>65536</memory><os><type arch='x86_64' machine='pc'>hvm</type></os>"
    return f"<domain type='kvm'><name>web1</name><uuid>{UUID}</uuid>{system}<devices>{card}</devices></domain>"


def recovered(card: str = CARD, *, isolated: bool) -> str:
    networks = dict.fromkeys(("br0",), f"network:{ISOLATED}") if isolated else None
    wishes = Wishes({}, name="web1", uuid=UUID, networks=networks, run="run-1", isolated=isolated)
    return rewrite_for_recovery(definition(card), wishes).xml


def backed_up(store: Store, host: str, night: str, text: str) -> None:
    """A night of a KVM host with that definition."""
    root = store.overnight(host)
    file = root / "data" / FOLDER.lstrip("/") / "web1.xml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    write_listing(root / "data", root / LISTING, None, None)
    manifest = night_manifest(client=host, id=night, listing_sha256=sha256_file(root / LISTING))
    write_model(root / MANIFEST, manifest)


def found_on(store: Store) -> str:
    return definitions.find(store, {"kvm1": FOLDER, "kvm2": FOLDER}, "web1").kvm_host


@pytest.mark.parametrize("card", [CARD, ""])
def test_an_isolated_copy_is_not_the_vm_however_new_it_is(tmp_path: Path, card: str) -> None:
    store = Store(tmp_path)
    backed_up(store, "kvm2", "20261103T020000Z", recovered(card, isolated=True))
    with pytest.raises(NothingToRecover, match="VM web1"):
        found_on(store)
    backed_up(store, "kvm1", "20261102T020000Z", definition(card))
    assert found_on(store) == "kvm1"


@pytest.mark.parametrize(
    "text",
    [
        recovered(isolated=False),
        recovered(isolated=True).replace(f'network="{ISOLATED}"', 'network="lan"'),
        definition(f"<interface type='network'><source network='{ISOLATED}'/></interface>"),
    ],
)
def test_a_vm_that_came_back_is_the_vm_and_so_is_a_copy_that_was_connected(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    backed_up(store, "kvm1", "20261102T020000Z", definition())
    backed_up(store, "kvm2", "20261103T020000Z", text)
    assert found_on(store) == "kvm2"
