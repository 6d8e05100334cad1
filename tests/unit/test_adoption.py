"""What a copy of a template is given to become a client's disks, and when it cannot."""

from __future__ import annotations

import pytest

from tasks.errors import RecoveryRefused
from tasks.model.adoption import Adoption, Place, adoption
from tasks.model.facts import Facts
from tasks.model.shape import Shape, shape_of_facts
from tasks.model.volume_names import parts_of
from tests.unit.test_facts import facts

BOOT_UUID = "f918dcb5-ea87-4a65-9298-8733ca9e3191"


def adopted(client: Facts, template: Shape) -> Adoption:
    return adoption(client, template, client="web1", called="db1/1")


def shape_of(change: dict[str, str]) -> Shape:
    return shape_of_facts(facts(change=change))


def test_identity_is_placed_by_position_whatever_the_template_is_called() -> None:
    found = adopted(facts(), shape_of({"vg0-": "main-", '"vda': '"sdc', "/dev/vda": "/dev/sdc"}))
    holdings = {row.place: (row.fstype, row.uuid, row.label) for row in found.holdings}
    assert holdings[Place(disk=1, partition=2)] == ("ext4", BOOT_UUID, "boot")
    assert holdings[Place(volume="/dev/vg0/root")][0] == "ext4"
    assert holdings[Place(volume="/dev/vg0/var")][0] == "xfs"
    assert [row.place for row in found.physical_volumes] == [Place(disk=1, partition=3)]
    renamed = {(row.group, row.volume, row.new_group, row.new_volume) for row in found.names}
    assert renamed == {("main", "root", "vg0", "root"), ("main", "var", "vg0", "var")}


def test_volumes_are_told_by_what_they_hold_and_where_it_is_mounted() -> None:
    found = adopted(facts(), shape_of({"vg0-root": "a--b-two", "vg0-var": "a--b-one"}))
    assert {(row.group, row.volume, row.new_volume) for row in found.names} == {
        ("a-b", "two", "root"),
        ("a-b", "one", "var"),
    }


def test_a_larger_template_serves_and_a_smaller_one_does_not() -> None:
    larger = shape_of({"6442450944": "9442450944", "6124732928": "9124732928", "3221225472": "4221225472"})
    assert adopted(facts(), larger).holdings
    with pytest.raises(RecoveryRefused, match=r"db1/1 differs in disk 1, partition 2: it has 299\.0 MiB"):
        adopted(facts(), shape_of({"314572800": "313524224"}))


def test_a_partition_that_the_template_does_not_say_the_place_of_serves() -> None:
    shape = shape_of({})
    (disk,) = shape.disks
    partitions = tuple(part.model_copy(update={"mountpoints": ()}) for part in disk.partitions)
    silent = shape.model_copy(update={"disks": (disk.model_copy(update={"partitions": partitions}),)})
    assert adopted(facts(), silent) == adopted(facts(), shape)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("md_luks_lsblk_2_38", "LUKS"),
        ("md_raid1", "md array"),
        ("nothing", "differs in disk 1"),
    ],
)
def test_what_a_template_cannot_give_is_refused(case: str, said: str) -> None:
    with pytest.raises(RecoveryRefused, match=said) as refused:
        adopted(facts(case), shape_of({}))
    assert "\n" not in str(refused.value)


def test_a_file_system_whose_uuid_cannot_be_set_is_refused() -> None:
    before = '"fstype": "{}",\n      "uuid": "f918'
    strange = facts(change={before.format("ext4"): before.format("ntfs")})
    with pytest.raises(RecoveryRefused, match="UUID of ntfs on vda2"):
        adopted(strange, shape_of({}))


@pytest.mark.parametrize(
    ("mapped", "parts"),
    [
        ("vg0-root", ("vg0", "root")),
        ("vg--0-lv--a", ("vg-0", "lv-a")),
        ("vg---lv", ("vg-", "lv")),
        ("luks", None),
        ("a--b", None),
    ],
)
def test_names_of_the_device_mapper(mapped: str, parts: tuple[str, str] | None) -> None:
    assert parts_of(mapped) == parts
