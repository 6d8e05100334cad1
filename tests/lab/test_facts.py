"""Facts of a machine with md, LVM, LUKS and a VLAN over a bond (libguestfs's appliance) are what its tools say."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import guestfs
import pytest

from tasks.drivers import appliance, facts
from tasks.drivers.ssh import Output, Shell
from tasks.model.facts import Facts
from tasks.model.facts_disks import BlockDevice

pytestmark = pytest.mark.timeout(900)
RAID, LVM = "a19d880f-05fc-4d3b-a006-743f0f84911e", "e6d6d379-f507-44c2-a23c-238f2a3df928"
LAYOUT = f"""
for module in bonding 8021q dm-crypt dm-thin-pool dm-snapshot raid1 raid456; do modprobe $module; done
for disk in sda sdb sdc; do sfdisk -q /dev/$disk <<'.'
label: gpt
start=2048, size=102400, type={RAID}, name="raid one"
size=102400, type={RAID}
size=204800, type={LVM}
size=102400, name="crypt", attrs="RequiredPartition LegacyBIOSBootable"
.
done
sfdisk --part-label /dev/sda 4 'new
line "x\\y'
udevadm settle
mdadm --create /dev/md0 --run -q --level=1 --raid-devices=2 --homehost=web1 --name=boot \\
    --spare-devices=1 /dev/sdb1 /dev/sda1 /dev/sdc1
mdadm --create /dev/md/data --run -q --level=5 --raid-devices=3 --chunk=64 --assume-clean --homehost=web1 --name=data \\
    /dev/sda2 /dev/sdb2 /dev/sdc2
mdadm --wait /dev/md0
pvcreate -qy /dev/sda3 /dev/sdb3 /dev/sdc3
vgcreate -qs 8M vg0 /dev/sda3 /dev/sdb3
lvcreate -qyn root -L 16M vg0 /dev/sda3
lvcreate -qyn stripe -i 2 -I 64k -L 16M vg0
lvextend -q -L +8M vg0/root /dev/sda3
lvcreate -qy --type thin-pool -L 24M -n pool vg0
lvcreate -qy -V 64M -T vg0/pool -n thin
lvcreate -qys -n snap -L 8M vg0/root
printf secret >/tmp/key
cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/sda4 /tmp/key
cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 /dev/sdb4 /tmp/key
cryptsetup open --key-file /tmp/key /dev/sda4 opened
mkfs.ext4 -qF -L 'new
line "x\\y' /dev/mapper/opened
ip link add bond0 type bond mode active-backup
ip link add link bond0 name bond0.7 type vlan id 7
ip address add 192.0.2.4/24 dev bond0.7
ip address add 2001:db8::4/64 dev bond0.7 nodad
ip link set bond0 up
ip link set bond0.7 up
ip route add default via 192.0.2.1
udevadm settle
"""


class Machine:
    """The appliance in the place of a client behind ssh."""

    def __init__(self, handle: Any) -> None:
        self.handle, self.name = handle, "appliance"

    def run(self, command: Sequence[str] | str, *, deadline_s: float = 60, name: str = "") -> Output:
        script = command if isinstance(command, str) else shlex.join(command)
        encoded = base64.b64encode(f"exec 2>&1\n{script}".encode()).decode()
        return Output(0, self.handle.debug("sh", [f"echo {encoded} | base64 -d | sh"]), "")

    def says(self, script: str) -> str:
        return self.run(script).stdout.strip()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    os.environ.update(appliance.appliance_environment(os.environ))
    handle = guestfs.GuestFS(python_return_dict=True)
    with contextlib.closing(handle):
        for number in range(4):
            disk: Path = tmp_path_factory.mktemp("disks") / f"{number}.raw"
            with disk.open("wb") as file:
                file.truncate(400 << 20)
            handle.add_drive_opts(str(disk), format="raw")
        handle.launch()
        made = Machine(handle)
        print(made.run(LAYOUT).stdout)
        yield made


@pytest.fixture(scope="module")
def found(machine: Machine) -> Facts:
    return facts.collect(cast(Shell, machine), datetime(2026, 1, 1, tzinfo=UTC))


def test_nothing_that_the_tools_say_is_unreadable(found: Facts) -> None:
    assert found.unread == ()


def test_partition_table_rebuilt_from_the_facts_is_the_same(machine: Machine, found: Facts) -> None:
    (disk,) = [device for device in found.block_devices if device.name == "sdb"]
    sector = disk.sector_bytes or 0

    def line(part: BlockDevice) -> str:
        start, size = (part.start_bytes or 0) // sector, part.size_bytes // sector
        return f"start={start}, size={size}, type={part.partition_type}, uuid={part.partition_uuid}"

    parts = [device for device in found.block_devices if device.parent == "sdb" and device.type == "part"]
    script = "\n".join([f"label: {disk.partition_table}", f"label-id: {disk.table_uuid}", *map(line, parts)])
    machine.run("udevadm settle")  # a look of udev's at the disk would be "in use"
    machine.run(f"sfdisk -q --no-reread /dev/sdd <<'.'\n{script}\n.\npartprobe /dev/sdd; udevadm settle")
    original, rebuilt = (
        json.loads(machine.says(f"sfdisk --json /dev/{name}"))["partitiontable"] for name in ("sdb", "sdd")
    )
    assert original["id"] == rebuilt["id"]
    for one, other in zip(original["partitions"], rebuilt["partitions"], strict=True):
        assert {key: one[key] for key in ("start", "size", "type", "uuid")} == {
            key: other[key] for key in ("start", "size", "type", "uuid")
        }


def test_labels_are_whole_whatever_is_in_them(found: Facts) -> None:
    rows = {device.name: device for device in found.block_devices}
    assert (rows["sda1"].partition_label, rows["sda4"].partition_label) == ("raid one", 'new\nline "x\\y')
    assert (rows["opened"].label, rows["sda4"].partition_flags) == ('new\nline "x\\y', "0x5")


def test_arrays_are_those_that_mdadm_scans(machine: Machine, found: Facts) -> None:
    assert found.md_arrays is not None
    scanned = machine.says("mdadm --detail --scan --verbose")
    assert {array.uuid for array in found.md_arrays} == {
        word.removeprefix("UUID=") for word in scanned.split() if word.startswith("UUID=")
    }
    boot, data = sorted(found.md_arrays, key=lambda array: array.name)
    assert (boot.level, boot.devices, boot.members, boot.spares) == ("raid1", 2, ("sdb1", "sda1"), ("sdc1",))
    assert (data.level, data.chunk_bytes, data.layout, data.metadata) == ("raid5", 65536, 2, "1.2")


def test_volume_groups_say_what_their_volumes_are_made_of(machine: Machine, found: Facts) -> None:
    assert found.volume_groups is not None
    none, vg0 = found.volume_groups
    assert (none.name, [pv.device for pv in none.physical_volumes]) == ("", ["/dev/sdc3"])
    assert [vg0.uuid, str(vg0.extent_bytes)] == machine.says(
        "vgs --noheadings --units b --nosuffix -o vg_uuid,vg_extent_size vg0"
    ).split()
    segments = {segment.lv: segment for segment in vg0.segments}
    assert (segments["stripe"].type, segments["stripe"].stripes, segments["stripe"].stripe_bytes) == (
        "striped",
        2,
        65536,
    )
    assert (segments["thin"].pool, segments["snap"].origin, segments["pool"].type) == ("pool", "root", "thin-pool")
    assert segments["root"].ranges == ("/dev/sda3:3-3",)


def test_luks_devices_have_the_uuid_and_version_that_cryptsetup_says(machine: Machine, found: Facts) -> None:
    luks = {device.device: device for device in found.luks_devices}
    assert {name: device.version for name, device in luks.items()} == {"sda4": "2", "sdb4": "1"}
    for name, device in luks.items():
        assert device.uuid == machine.says(f"cryptsetup luksUUID /dev/{name}")


def test_network_is_what_was_set_up(found: Facts) -> None:
    assert found.interfaces is not None
    rows = {row.name: row for row in found.interfaces}
    assert (rows["bond0"].kind, rows["bond0"].bond_mode) == ("bond", "active-backup")
    assert (rows["bond0.7"].link, rows["bond0.7"].vlan_id) == ("bond0", 7)
    assert [row.address for row in rows["bond0.7"].addresses] == ["192.0.2.4/24", "2001:db8::4/64"]
    assert found.routes is not None
    assert [(route.destination, route.gateway, route.device) for route in found.routes] == [
        ("default", "192.0.2.1", "bond0.7")
    ]
