"""Which of a client's file systems are snapshotted, how much room that takes, and what is provably ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.model.client_snapshot import (
    SnapshotTree,
    Survey,
    btrfs_devices,
    lost,
    our_mounts,
    our_subvolumes,
    our_volumes,
    plan,
    shadowed,
    tree_path,
)
from tasks.model.client_volumes import Group, Volume, parse_groups, parse_volumes
from tasks.model.manifest import SourceRecord
from tasks.model.mountinfo import parse_mounts

RUN = "20261125T020000Z"
EXTENT = 4 << 20
# web1's own, a btrfs data disk as Fedora mounts it, and what no snapshot can be made of.
MOUNTS = r"""22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/mapper/vg0-root rw
23 22 0:21 / /proc rw - proc proc rw
24 22 254:2 / /var rw - xfs /dev/mapper/vg0-var rw,attr2
25 22 8:2 / /boot rw - ext4 /dev/vda2 rw
26 22 0:40 /@srv /srv rw - btrfs /dev/vdb rw,space_cache=v2,subvolid=256,subvol=/@srv
27 26 0:41 /@log /srv/log rw - btrfs /dev/vdb rw,space_cache=v2,subvolid=257,subvol=/@log
28 22 0:42 / /mnt/nas rw - nfs4 nas:/x rw
29 22 254:2 /lib/app /opt/app rw - xfs /dev/mapper/vg0-var rw,attr2
30 22 0:40 /@srv/www /www rw - btrfs /dev/vdb rw,subvolid=256,subvol=/@srv
31 22 254:3 / /thin rw - ext4 /dev/mapper/vg0-thin rw
32 22 254:4 / /jfs rw - jfs /dev/mapper/vg0-jfs rw
33 22 0:44 / /old ro - btrfs /dev/vdc ro,subvolid=5,subvol=/
"""


def volume(name: str, minor: int, **changed: Any) -> Volume:
    values: dict[str, Any] = {
        "group": "vg0",
        "name": name,
        "attributes": "-wi-ao----",
        "tags": (),
        "origin": "",
        "size_bytes": 1 << 30,
        "used_percent": None,
        "device": f"254:{minor}",
    }
    return Volume(**values | changed)


def ours(**changed: Any) -> Volume:
    values: dict[str, Any] = {"attributes": "swi-aos---", "tags": ("gbs",), "origin": "root", "used_percent": 1.5}
    return volume(changed.pop("name", f"gbs-{RUN}-0"), 9, **values | changed)


VOLUMES = (volume("root", 1), volume("var", 2), volume("thin", 3, attributes="Vwi-aotz--"), volume("jfs", 4))


def survey(free: int = 100, **changed: Any) -> Survey:
    values: dict[str, Any] = {
        "mounts": tuple(parse_mounts(MOUNTS)),
        "volumes": VOLUMES,
        "groups": (Group("vg0", EXTENT, free),),
    }
    return Survey(**values | changed)


def kinds(paths: tuple[str, ...], wanted: Any = "auto", free: int = 100, **changed: Any) -> dict[str, str]:
    parts = plan(survey(free, **changed), paths, wanted, 10, RUN)
    return {part.mount.mountpoint: part.kind for part in parts}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("auto", {"/": "lvm", "/boot": "live", "/srv": "btrfs", "/srv/log": "btrfs", "/var": "lvm"}),
        ("lvm", {"/": "lvm", "/boot": "live", "/srv": "live", "/srv/log": "live", "/var": "lvm"}),
        ("btrfs", {"/": "live", "/boot": "live", "/srv": "btrfs", "/srv/log": "btrfs", "/var": "live"}),
    ],
)
def test_file_systems_are_snapshotted_where_that_is_asked_and_possible(wanted: str, expected: dict[str, str]) -> None:
    assert kinds(("/", "/boot", "/srv", "/srv/log", "/var"), wanted) == expected


def test_parts_come_above_before_below_and_are_named_for_the_run() -> None:
    parts = plan(survey(), ("/var/lib/x", "/srv/log", "/etc", "/srv"), "auto", 10, RUN)
    assert [part.mount.mountpoint for part in parts] == ["/", "/srv", "/srv/log", "/var"]
    assert [part.name for part in parts] == [f"gbs-{RUN}-{number}" for number in range(4)]
    assert (parts[0].origin, parts[0].snapshot) == ("vg0/root", f"vg0/gbs-{RUN}-0")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/boot", "ext4 on /dev/vda2 is not on LVM"),
        ("/mnt/nas", "no file system of its own disks"),
        ("/proc/sys", "no file system of its own disks"),
        ("/opt/app", "is mounted by a folder"),
        ("/www", "is mounted by a folder that is no subvolume"),
        ("/thin", "no room of its own"),
        ("/jfs", "nobody has tried to mount"),
        ("/old", "is read-only"),
    ],
)
def test_what_can_never_be_snapshotted_is_read_live_and_expected(path: str, why: str) -> None:
    (part,) = plan(survey(), (path,), "auto", 10, RUN)
    assert (part.kind, part.unexpected, part.name) == ("live", False, "")
    assert why in part.reason


def test_room_is_a_part_of_the_volume_in_whole_extents_and_given_out_once() -> None:
    # A tenth of 1 GiB is 25.6 extents of 4 MiB.
    both = plan(survey(52), ("/", "/var"), "auto", 10, RUN)
    assert [(part.kind, part.extents) for part in both] == [("lvm", 26), ("lvm", 26)]
    root, var = plan(survey(51), ("/", "/var"), "auto", 10, RUN)
    assert (root.kind, var.kind, var.unexpected) == ("lvm", "live", True)
    assert var.reason == "25 extents of 4194304 bytes are free in vg0, and its snapshot needs 26"


def test_group_that_lvm_does_not_tell_of_has_no_room() -> None:
    (part,) = plan(survey(groups=()), ("/",), "auto", 10, RUN)
    assert (part.kind, part.unexpected) == ("live", True)


def test_path_through_a_link_is_in_no_part() -> None:
    assert kinds(("/srv", "/etc/link/x"), linked=frozenset({"/etc/link/x"})) == {"/srv": "btrfs"}


@pytest.mark.parametrize(
    "foreign",
    [
        {"name": "gbs"},
        {"name": "gbs-data"},
        {"name": f"gbs-{RUN}-0x"},
        {"name": f"my-gbs-{RUN}-0"},
        {"tags": ()},
        {"tags": ("gbs-not",)},
        {"attributes": "-wi-ao----"},
        {"attributes": "owi-aos---"},
        {"attributes": "Vwi-aotz--"},
        {"origin": ""},
    ],
)
def test_volume_that_lacks_name_tag_or_kind_is_not_ours(foreign: dict[str, Any]) -> None:
    assert our_volumes(Survey(mounts=(), volumes=(ours(**foreign), *VOLUMES))) == []


@pytest.mark.parametrize("attributes", ["swi-aos---", "swi-a-s---", "Swi-I-s---", "swi-Ios---"])
def test_volume_of_ours_is_ours_in_every_state(attributes: str) -> None:
    left = ours(attributes=attributes, tags=("kept", "gbs"))
    assert our_volumes(Survey(mounts=(), volumes=(left,))) == [f"vg0/gbs-{RUN}-0"]


def test_our_subvolumes_are_those_of_our_name_in_our_folder() -> None:
    # btrfs-progs 6.2, subvolume list -a -r -s; the second and third were not made by us.
    text = f"""ID 258 gen 7 cgen 7 top level 5 otime 2026-11-25 14:28:31 path <FS_TREE>/.gbs-snapshots/gbs-{RUN}-0
ID 259 gen 7 cgen 7 top level 5 otime 2026-11-25 14:28:31 path <FS_TREE>/.gbs-snapshots/keep
ID 260 gen 9 cgen 9 top level 256 otime 2026-11-25 14:28:31 path @srv/.gbs-snapshots/gbs-{RUN}-1
ID 261 gen 9 cgen 9 top level 5 otime 2026-11-25 14:28:31 path .gbs-snapshots/gbs-{RUN}-12
ID 262 gen 9 cgen 9 top level 5 otime 2026-11-25 14:28:31 path .gbs-snapshots/gbs-{RUN}-3/x
"""
    assert our_subvolumes(text) == [f"gbs-{RUN}-0", f"gbs-{RUN}-12"]


def test_our_mounts_come_last_first_and_are_below_our_folder() -> None:
    tree = tree_path(RUN)
    text = f"""40 22 254:9 / {tree} ro - ext4 /dev/mapper/x ro
41 40 254:10 / {tree}/var ro - xfs /dev/mapper/y ro
42 22 0:50 / /run/gbs-snapshots/x rw - tmpfs x rw
"""
    assert our_mounts(Survey(mounts=tuple(parse_mounts(MOUNTS + text)))) == [f"{tree}/var", tree]


def test_btrfs_is_looked_at_once_a_device_where_it_may_be_written() -> None:
    assert btrfs_devices(survey()) == {"/dev/vdb": "/srv"}


def test_mount_points_right_below_a_part_show_what_they_hide() -> None:
    parts = plan(survey(), ("/", "/srv"), "auto", 10, RUN)
    assert set(shadowed(survey(), parts)) == {
        *("/boot", "/jfs", "/mnt/nas", "/old", "/opt/app", "/proc", "/srv/log", "/thin", "/var", "/www"),
    }
    assert shadowed(survey(), parts[1:]) == ["/srv/log"]


@pytest.mark.parametrize(
    ("path", "place"), [("/", f"/run/gbs-snapshot/{RUN}/tree"), ("/srv", f"/run/gbs-snapshot/{RUN}/tree/srv")]
)
def test_tree_path(path: str, place: str) -> None:
    assert tree_path(RUN, path) == place


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({}, ""),
        ({"used_percent": 99.99}, ""),
        ({"used_percent": 100.0}, "the snapshot of / filled up"),
        ({"attributes": "swi-Ios---", "used_percent": None}, "the snapshot of / filled up"),
        ({"attributes": "Swi-Sos---"}, "the snapshot of / filled up"),
        ({"name": "another"}, "the snapshot of / went away"),
    ],
)
def test_snapshot_that_filled_up_or_went_away_is_lost(state: dict[str, Any], why: str) -> None:
    tree = SnapshotTree(
        id=RUN,
        sources=(SourceRecord(place="/", kind="lvm"),),
        reads={},
        mounted={tree_path(RUN): "/"},
        volumes={f"vg0/gbs-{RUN}-0": "/"},
    )
    mounts = tuple(parse_mounts(f"{MOUNTS}40 22 254:9 / {tree_path(RUN)} ro - ext4 /dev/mapper/x ro\n"))
    lines = lost(tree, Survey(mounts=mounts, volumes=(ours(**state),)), 10)
    assert len(lines) == bool(why)
    assert why in "".join(lines)
    # dmeventd unmounts a snapshot that is full; another may do so, too.
    unmounted = lost(tree, Survey(mounts=mounts[:-1], volumes=(ours(),)), 10)
    assert unmounted == ["the snapshot of / went away during the transfer"]
    (full,) = lost(tree, Survey(mounts=mounts[:-1], volumes=(ours(used_percent=100.0),)), 10)
    assert full.endswith("(snapshot_room_percent, now 10)")


def test_lvm_with_a_snapshot_that_filled_up_is_read_as_it_was_told() -> None:
    """The lab's Debian 12 guest (LVM 2.03): 60 MiB were written to the origin of a snapshot with room for 32."""
    rows = [
        _row(
            lv_name="gbs-20261125T144542Z-0", lv_attr="swi-I-s---", lv_tags="gbs", origin="root", data_percent="100.00"
        ),
        _row(lv_name="root", lv_attr="owi-aos---", lv_size="3221225472", lv_kernel_minor="0"),
        _row(lv_name="off", lv_attr="-wi-------", lv_kernel_major="-1", lv_kernel_minor="-1"),
    ]
    snapshot, root, off = parse_volumes(json.dumps({"report": [{"lv": rows}]}))
    assert (snapshot.full_name, snapshot.tags, snapshot.origin) == ("vg0/gbs-20261125T144542Z-0", ("gbs",), "root")
    assert (snapshot.is_snapshot, snapshot.is_lost, snapshot.is_plain) == (True, True, False)
    assert (root.is_snapshot, root.is_lost, root.is_plain) == (False, False, True)
    assert (root.device, root.size_bytes, root.tags, off.device) == ("253:0", 3 << 30, (), "")
    groups = {"report": [{"vg": [{"vg_name": "vg0", "vg_extent_size": "4194304", "vg_free_count": "51"}]}]}
    assert parse_groups(json.dumps(groups)) == (Group("vg0", EXTENT, 51),)


def _row(**changed: str) -> dict[str, str]:
    row = {"vg_name": "vg0", "lv_tags": "", "origin": "", "lv_size": "33554432", "data_percent": ""}
    return {**row, "lv_kernel_major": "253", "lv_kernel_minor": "7", **changed}


def test_no_lvm_at_all_is_no_volumes() -> None:
    assert parse_volumes("") == ()
    assert parse_groups("") == ()
    assert parse_volumes(json.dumps({"report": [{"lv": []}]})) == ()
