"""What differs between two nights besides the shape: arrays, LUKS, LVM's layout, fstab, the loader, the network."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tasks.model.differences import SHOWN, differences
from tasks.model.facts import Facts
from tasks.model.facts_disks import BlockDevice
from tasks.model.facts_lvm import LvSegment, PhysicalVolume, VolumeGroup
from tasks.model.facts_md import MdArray
from tasks.model.facts_mounts import CrypttabEntry, FileSystem, FstabEntry
from tasks.model.facts_network import Address, Interface, Resolvers, Route
from tasks.model.shape import shape_of_facts

MIB = 1024 * 1024
PARTITION = BlockDevice(
    name="sda1", type="part", size_bytes=MIB, parent="sda", partition_uuid="p1", start_bytes=MIB, fstype="ext4"
)
LUKS = BlockDevice(name="sda2", type="part", size_bytes=MIB, parent="sda", uuid="l1", fstype="crypto_LUKS")
ARRAY = MdArray(device="md0", level="raid1", devices=2, uuid="m1", name="web1:0", members=("sda1", "sdb1"))
SEGMENT = LvSegment(lv="root", type="linear", size_bytes=MIB, ranges=("/dev/sda3:0-9",))
GROUP = VolumeGroup(
    name="vg0",
    uuid="v1",
    extent_bytes=4 * MIB,
    physical_volumes=(PhysicalVolume(device="/dev/sda3", uuid="u", size_bytes=MIB),),
    segments=(SEGMENT,),
)
ROOT = FileSystem(mountpoint="/", source="/dev/sda1", fstype="ext4", uuid="f1", size_bytes=MIB, used_bytes=1)
LEASED = Address(address="192.0.2.99/24", dynamic=True)
ETH0 = Interface(name="eth0", mac="52:54:00:12:34:56", mtu=1500, addresses=(Address(address="192.0.2.7/24"), LEASED))
VLAN = Interface(name="eth0.7", kind="vlan", mac="52:54:00:12:34:56", mtu=1500, link="eth0", vlan_id=7)
GATEWAY = Route(destination="default", gateway="192.0.2.1", device="eth0")
SWAP = FstabEntry(source="/dev/vg0/swap", mountpoint="none", fstype="swap", options="sw")


def facts(**values: Any) -> Facts:
    known: dict[str, Any] = {
        "block_devices": (PARTITION, LUKS),
        "file_systems": (ROOT,),
        "md_arrays": (ARRAY,),
        "volume_groups": (GROUP,),
        "fstab": (FstabEntry(source="UUID=f1", mountpoint="/", fstype="ext4"), SWAP),
        "crypttab": (CrypttabEntry(name="data", source="UUID=l1"),),
        "boot_loader": "grub",
        "interfaces": (ETH0, VLAN),
        "routes": (GATEWAY,),
        "resolvers": Resolvers(nameservers=("192.0.2.53",)),
    }
    system = dict.fromkeys(("hostname", "os_id", "os_version", "os_name", "kernel", "architecture", "machine_id"), "x")
    return Facts(collected=datetime(2026, 1, 1, tzinfo=UTC), boot_mode="bios", **{**system, **known, **values})


def changed(**values: Any) -> dict[str, tuple[str, str]]:
    return {point.what: (point.template, point.client) for point in differences(facts(), facts(**values))}


def test_nights_that_are_alike_differ_in_nothing() -> None:
    assert differences(facts(), facts()) == []


@pytest.mark.parametrize(
    ("values", "what", "before", "after"),
    [
        (
            {"block_devices": (PARTITION.model_copy(update={"start_bytes": 2 * MIB}), LUKS)},
            "start of partition p1",
            "byte 1048576",
            "byte 2097152",
        ),
        ({"block_devices": (PARTITION,)}, "LUKS device l1", "1.0 MiB (1048576 bytes)", "nothing"),
        ({"md_arrays": ()}, "md array m1", "web1:0, raid1, 2 of 2 devices, 0 spares", "nothing"),
        (
            {"md_arrays": (ARRAY.model_copy(update={"members": ("sdb1",)}),)},
            "md array m1",
            "web1:0, raid1, 2 of 2 devices, 0 spares",
            "web1:0, raid1, 1 of 2 devices, 0 spares",
        ),
        (
            {"volume_groups": (GROUP.model_copy(update={"physical_volumes": ()}),)},
            "volume group vg0",
            "v1, 1 physical volumes, extents of 4.0 MiB",
            "v1, 0 physical volumes, extents of 4.0 MiB",
        ),
        (
            {
                "volume_groups": (
                    GROUP.model_copy(update={"segments": (SEGMENT.model_copy(update={"type": "raid1"}),)}),
                )
            },
            "layout of logical volume vg0/root",
            "linear over 1",
            "raid1 over 1",
        ),
        (
            {"file_systems": (ROOT.model_copy(update={"uuid": "f2"}),)},
            "UUID of the file system on /",
            "f1",
            "f2",
        ),
        ({"boot_loader": "systemd-boot"}, "boot loader", "grub", "systemd-boot"),
        ({"fstab": (SWAP,)}, "fstab /", "UUID=f1 ext4 defaults", "nothing"),
        (
            {"crypttab": (CrypttabEntry(name="data", source="UUID=l1", key_file="/etc/keys/k", options="luks"),)},
            "crypttab data",
            "UUID=l1 none",
            "UUID=l1 /etc/keys/k luks",
        ),
        (
            {"interfaces": (ETH0.model_copy(update={"addresses": (Address(address="192.0.2.8/24"),)}), VLAN)},
            "interface eth0",
            "MAC 52:54:00:12:34:56, MTU 1500, 192.0.2.7/24",
            "MAC 52:54:00:12:34:56, MTU 1500, 192.0.2.8/24",
        ),
        ({"interfaces": (ETH0,)}, "interface eth0.7", "VLAN 7 on eth0, MTU 1500", "nothing"),
        (
            {"routes": (GATEWAY, GATEWAY.model_copy(update={"gateway": "192.0.2.2"}))},
            "route to default",
            "192.0.2.1 on eth0",
            "192.0.2.1 on eth0, 192.0.2.2 on eth0",
        ),
        (
            {"resolvers": Resolvers(search=("example.org",))},
            "resolvers",
            "192.0.2.53",
            "none, search example.org",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_change_is_said_once_and_does_not_touch_the_flavour(
    values: dict[str, Any], what: str, before: str, after: str
) -> None:
    assert changed(**values) == {what: (before, after)}
    if set(values) - {"block_devices"}:
        assert shape_of_facts(facts(**values)).flavour == shape_of_facts(facts()).flavour


@pytest.mark.parametrize(
    "values",
    [
        {"interfaces": (ETH0.model_copy(update={"addresses": (ETH0.addresses[0],)}), VLAN)},
        {"interfaces": (ETH0, VLAN.model_copy(update={"mac": "52:54:00:00:00:01"}))},
        {"routes": (GATEWAY, GATEWAY.model_copy(update={"gateway": "192.0.2.9", "dynamic": True}))},
        {"md_arrays": (ARRAY.model_copy(update={"device": "md127", "members": ("sdc1", "sdd1")}),)},
        {"volume_groups": (GROUP.model_copy(update={"segments": (SEGMENT, SEGMENT)}),)},
        {"block_devices": (PARTITION.model_copy(update={"name": "sdb1"}), LUKS.model_copy(update={"name": "sdb2"}))},
    ],
    ids=["lease", "mac-of-vlan", "leased-route", "md-renamed", "lv-extended", "disks-swapped"],
)
def test_what_changes_by_itself_is_not_said(values: dict[str, Any]) -> None:
    assert changed(**values) == {}


@pytest.mark.parametrize(
    "unknown",
    [
        {"boot_loader": "unknown"},
        *({name: None} for name in ("md_arrays", "volume_groups", "fstab", "crypttab", "interfaces", "routes")),
        {"resolvers": None},
    ],
    ids=lambda value: next(iter(value)),
)
def test_what_one_night_does_not_know_is_not_compared(unknown: dict[str, Any]) -> None:
    """The first night after an upgrade, and one without the tool, would say that everything came or went."""
    assert changed(**unknown) == {}
    assert differences(facts(**unknown), facts()) == []


def test_many_changes_of_one_topic_are_cut_and_hide_no_other() -> None:
    many = tuple(ETH0.model_copy(update={"name": f"eth{number}"}) for number in range(500))
    points = differences(facts(), facts(interfaces=many, resolvers=Resolvers()))
    assert [point.what for point in points].count("resolvers") == 1
    assert len(points) == SHOWN + 2
    assert f"interface: {500 - SHOWN} more" in {point.what for point in points}
