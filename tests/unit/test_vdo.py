"""VDO: the commands that make a store on it, what its device may not have, which pool a mount lies on."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from tasks.drivers.vdo import pool_of, require_empty
from tasks.errors import CommandFailed, ConfigError
from tasks.model.room import Room, doubts, remarks
from tasks.model.space import savings
from tasks.model.vdo import on_device, parse_usage, setup, size_from

GIB = 1 << 30
STATS = """\
gbs-pool-vpool :
  version                               : 36
  data blocks used                      : 24715
  overhead blocks used                  : 729933
  logical blocks used                   : 96044
  physical blocks                       : 2096128
  saving percent                        : 74
  block size                            : 4096
  operating mode                        : normal
  recovery progress (%)                 : N/A
"""
"""Of vdostats 8.3 on a pool of 8 GiB with two copies of one folder."""


def test_printed_commands_are_the_ones_that_are_run() -> None:
    made = setup(Path("/dev/sdb"), 500 * GIB, "gbs", None, Path("/srv/my store"))
    lines = [step.line for step in made.steps]
    assert lines == [
        "pvcreate /dev/sdb",
        "vgcreate gbs /dev/sdb",
        "lvcreate --yes --type vdo --name store --extents 100%FREE --virtualsize 1610612736000b"
        " --config 'allocation{vdo_slab_size_mb=2048 vdo_max_discard=256}' gbs/pool",
        "mkfs.xfs -q -K -m reflink=1 /dev/gbs/store",
        "mkdir -p '/srv/my store'",
        r"echo '/dev/gbs/store /srv/my\040store xfs noatime,discard 0 0' >>/etc/fstab",
        "mount '/srv/my store'",
        "echo gbs >>'/srv/my store/.gbs-store'",
    ]
    assert all(shlex.split(line) for line in lines)


@pytest.mark.parametrize(
    ("size_bytes", "settings"),
    [
        (8 * GIB, (128, "6}")),
        (3 << 40, (2048, " vdo_use_sparse_index=1}")),
        (9 << 40, (32768, " vdo_use_sparse_index=1}")),
    ],
)
def test_slabs_leave_a_pool_room_to_grow(size_bytes: int, settings: tuple[int, str]) -> None:
    (line,) = [
        step.line
        for step in setup(Path("/d"), size_bytes, "g", 1 << 40, Path("/m")).steps
        if step.argv[0:1] == ("lvcreate",)
    ]
    slab_mib, end = settings
    assert f"vdo_slab_size_mb={slab_mib} " in line
    assert f"{end}'" in line
    assert f"--virtualsize {1 << 40}b" in line


def test_what_cannot_be_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"/d has 1073741824 bytes \(--vdo\): VDO needs at least"):
        setup(Path("/d"), GIB, "gbs", None, Path("/m"))
    for name in ("-rf", "a b", "", "A"):
        with pytest.raises(ConfigError, match="is no name of a volume group"):
            setup(Path("/d"), 99 * GIB, name, None, Path("/m"))
    assert size_from("20g") == 20 * GIB
    for text in ("20", "20 G", "-1G", "1P"):
        with pytest.raises(ConfigError, match="is no size"):
            size_from(text)


def test_device_with_anything_on_it_is_refused(tmp_path: Path) -> None:
    lsblk = {
        "path": "/dev/sdb",
        "mountpoints": [None],
        "children": [{"path": "/dev/sdb1", "type": "part", "mountpoints": ["/", "[SWAP]"]}],
    }
    signatures = {"signatures": [{"device": "sdb", "type": "gpt"}]}
    assert on_device(json.dumps({"blockdevices": [lsblk]}), json.dumps(signatures)) == [
        *(
            "a signature of gpt",
            "/dev/sdb1 (part) lies on it",
            "/dev/sdb1 is in use as /",
            "/dev/sdb1 is in use as [SWAP]",
        )
    ]
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    argv = ["losetup", "--find", "--show", str(image)]
    device = Path(subprocess.check_output(argv, text=True).strip())
    try:
        require_empty(device)
        subprocess.run(["mkfs.ext4", "-q", str(device)], check=True)
        with pytest.raises(ConfigError, match=rf"{device} is not empty: a signature of ext4 .*wipefs --all {device}"):
            require_empty(device)
        (tmp_path / "m").mkdir()
        subprocess.run(["mount", str(device), str(tmp_path / "m")], check=True)
        with pytest.raises(ConfigError, match=rf"{device} is in use as {tmp_path}/m; the kernel does not give it away"):
            require_empty(device)
        subprocess.run(["umount", str(tmp_path / "m")], check=True)
        subprocess.run(["wipefs", "--all", "--quiet", str(device)], check=True)
        require_empty(device)
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


def test_pool_is_found_beneath_whatever_lies_on_it(tmp_path: Path) -> None:
    """sysfs as in the guest of test_vdo, with LUKS on the volume."""
    names = {"253:0": ("gbs-pool_vdata", "LVM-aaa"), "253:1": ("gbs-pool-vpool", "LVM-aaabbb-vpool")}
    names |= {"253:2": ("gbs-store", "LVM-aaaccc"), "253:3": ("luks", "CRYPT-LUKS2-ddd")}
    for number, (name, uuid) in names.items():
        (tmp_path / number / "dm").mkdir(parents=True)
        (tmp_path / number / "dm/name").write_text(f"{name}\n")
        (tmp_path / number / "dm/uuid").write_text(f"{uuid}\n")
        (tmp_path / number / "slaves").mkdir()
    for upper, lower in (("253:3", "253:2"), ("253:2", "253:1"), ("253:1", "253:0")):
        (tmp_path / upper / "slaves" / f"dm-{lower[-1]}").symlink_to(tmp_path / lower)
    assert pool_of("253:3", tmp_path) == pool_of("253:2", tmp_path) == "gbs-pool-vpool"
    assert pool_of("253:0", tmp_path) is None
    assert pool_of("0:42", tmp_path) is None


def test_figures_of_vdostats_decide_what_is_free_and_what_was_saved() -> None:
    usage = parse_usage("gbs-pool-vpool", STATS)
    assert usage.free_bytes == (2096128 - 24715 - 729933) * 4096
    assert round(100 * usage.saved_bytes / usage.logical_bytes) == 74
    has = Room(
        size_bytes=20 * GIB, used_bytes=GIB, free_bytes=19 * GIB, inodes=9, free_inodes=9, fstype="xfs", vdo=usage
    )
    assert has.left_bytes == usage.free_bytes
    assert has.taken_bytes + has.left_bytes == usage.size_bytes
    assert doubts(has, 0) == []
    assert remarks(has) == ["df shows 19.0 GiB free, VDO has 5.1 GiB: what is new must fit into that"]
    broken = usage.model_copy(update={"mode": "read-only", "logical_bytes": 9 * GIB})
    broken_room = has.model_copy(update={"vdo": broken})
    said = [*doubts(broken_room, 6 * GIB), *remarks(broken_room)]
    assert [line.split(":")[0] for line in said] == [
        "5.1 GiB are left, less than the reserve of 6.0 GiB",
        "its VDO volume gbs-pool-vpool is in mode read-only",
        "df shows 19.0 GiB free, VDO has 5.1 GiB",
        "VDO holds 8.0 GiB that were removed since",
    ]
    assert [row.note for row in savings(has.model_copy(update={"vdo": None, "fstype": "nfs4"}), None)] == [
        *["not measured: gbs space --deep"] * 2,
        "not visible over NFS: ask its server",
    ]
    with pytest.raises(CommandFailed, match="no 'operating mode' in what it says"):
        parse_usage("p", STATS.replace("operating mode", "mode"))
