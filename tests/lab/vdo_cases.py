"""What holds on a store that `gbs store create` put on VDO; run by test_vdo.py in the guest of vdo_guest.py.

Every figure is what vdostats(8) and lvs(8) say.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flows.cli import main
from tasks.drivers.space import require_space, room
from tasks.errors import ConfigError, StoreFull

DISK = "/dev/vdb"
PLACE = Path("/srv/gbs")
CLIENTS = ("web1", "web2", "web3")
SYSTEM = ("/usr/bin", str(Path(os.__file__).parent))
"""A part of it: 60 MiB of files, as the guest is emulated."""
INVENTORY = {
    "store": {"path": str(PLACE / "near"), "reserve_bytes": 0},
    "permanent": {"path": str(PLACE / "far"), "store_id": "gbs", "kind": "local"},
    "identities": {"default": {"private_key_file": "/root/key", "known_hosts_file": "/root/known_hosts"}},
    "clients": {name: name for name in CLIENTS},
}


def gbs(*words: str) -> Result:
    """Run the command in this process: another one would import everything again, for a quarter of a minute."""
    return CliRunner().invoke(main.gbs, words, standalone_mode=False, env={"GBS_INVENTORY": "/root/inventory.json"})


def said(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def vdostats() -> dict[str, int]:
    """The volume's own figures, in blocks of 4 KiB but for the percentage."""
    os.sync()
    return {name: int(value) for name, value in re.findall(r"^ +([a-z ]+?) +: (\d+)$", said("vdostats", "-v"), re.M)}


def space() -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(gbs("space", "--deep", "--json").stdout)
    return answer


@pytest.fixture(scope="module", autouse=True)
def _made() -> None:
    """The store on VDO, made by the command, with the folders of both stores in it."""
    done = gbs("store", "create", "--vdo", DISK, "--logical-size", "30G", "--run")
    assert done.exception is None, done.exception
    for folder in ("near", "far"):
        (PLACE / folder).mkdir()
    (PLACE / "near/.gbs-near-store").touch()
    (PLACE / "far/.gbs-store").write_text("gbs")
    Path("/root/inventory.json").write_text(json.dumps(INVENTORY))


def test_store_is_made_mounted_and_marked_and_the_device_is_never_taken_again() -> None:
    lv = json.loads(
        said("lvs", "--reportformat", "json", "-o", "lv_name,pool_lv,segtype,lv_size", "--units", "g", "gbs")
    )
    row = next(row for row in lv["report"][0]["lv"] if row["lv_name"] == "store")
    assert row == {"lv_name": "store", "pool_lv": "pool", "segtype": "vdo", "lv_size": "30.00g"}
    assert said("findmnt", "-n", "-o", "SOURCE,FSTYPE", str(PLACE)).split() == ["/dev/mapper/gbs-store", "xfs"]
    assert "reflink=1" in said("xfs_info", str(PLACE))
    assert "discard" in said("findmnt", "-n", "-o", "OPTIONS", str(PLACE)).strip().split(",")
    assert (PLACE / ".gbs-store").read_text() == "gbs\n"
    assert "/dev/gbs/store /srv/gbs xfs noatime,discard 0 0\n" in Path("/etc/fstab").read_text()
    for device in (DISK, "/dev/gbs/store"):
        refused = gbs("store", "create", "--vdo", device, "--name", "other", "--mountpoint", "/srv/other", "--run")
        assert isinstance(refused.exception, ConfigError)
        assert str(refused.exception).startswith(f"{device} is not empty: a signature of ")
    assert said("vgs", "--noheadings", "-o", "vg_name").split() == ["gbs"]


def test_copies_of_one_system_are_stored_once_and_gbs_says_what_vdo_says() -> None:
    before = vdostats()
    sizes = []
    for client in CLIENTS:
        data = PLACE / "near/overnight" / client / "data/usr"
        data.mkdir(parents=True)
        subprocess.run(["cp", "-a", "--reflink=never", *SYSTEM, str(data)], check=True)
        sizes.append(vdostats()["data blocks used"])
    subprocess.run(["sync", "-f", str(PLACE)], check=True)
    after = vdostats()
    first, second, third = (now - was for was, now in zip((before["data blocks used"], *sizes), sizes, strict=False))
    # What is new of a second and third copy is what the file system itself writes.
    assert second < first / 5
    assert third < first / 5
    assert after["saving percent"] >= 66
    print(f"blocks of 4 KiB: first copy {first}, second {second}, third {third}; saved {after['saving percent']} %")
    has = room(PLACE).vdo
    assert has is not None
    assert (has.pool, has.mode) == ("gbs-pool-vpool", "normal")
    figures = (has.size_bytes, has.overhead_bytes, has.data_bytes, has.logical_bytes)
    names = ("physical blocks", "overhead blocks used", "data blocks used", "logical blocks used")
    assert figures == tuple(after[name] * 4096 for name in names)
    store = space()["stores"][0]
    vdo = store["room"]["vdo"]
    # The walk wrote its result, and the file system its log.
    assert abs(vdo["data_bytes"] - has.data_bytes) < 4 << 20
    lv = json.loads(
        said("lvs", "--reportformat", "json", "-o", "vdo_saving_percent,vdo_used_size", "--units", "b", "gbs")
    )
    (row, *_) = lv["report"][0]["lv"]
    saved = {row["mechanism"]: row for row in store["savings"]}["VDO"]
    percent = 100 * saved["saved_bytes"] / (saved["saved_bytes"] + saved["left_bytes"])
    assert abs(percent - float(row["vdo_saving_percent"])) < 0.5
    assert abs(vdo["overhead_bytes"] + vdo["data_bytes"] - int(row["vdo_used_size"].rstrip("B"))) < 4 << 20
    # Nothing is a hard link or a reflink: without VDO each copy would take all of it.
    by = {row["mechanism"]: row for row in store["savings"]}
    assert by["hard links"]["left_bytes"] == by["reflinks"]["left_bytes"] > 3 * 0.9 * first * 4096


def test_what_would_not_fit_on_the_device_is_refused_though_df_has_room_for_it() -> None:
    has = room(PLACE)
    assert has.vdo is not None
    left = (vdostats()["physical blocks"] - vdostats()["data blocks used"] - vdostats()["overhead blocks used"]) * 4096
    assert has.free_bytes > 2 * left
    assert abs(has.left_bytes - left) < 1 << 20
    require_space(PLACE, left - (64 << 20), 0)
    with pytest.raises(StoreFull):
        require_space(PLACE, left + (64 << 20), 0)
    done = gbs("space")
    assert re.search(r"store: df shows \d+.\d GiB free, VDO has \d.\d GiB", done.output)
    assert "xfs on VDO" in done.output


def test_room_of_removed_files_comes_back_by_itself() -> None:
    junk = PLACE / "near/junk"
    junk.write_bytes(os.urandom(64 << 20))
    full = vdostats()["data blocks used"]
    junk.unlink()
    end = time.monotonic() + 120
    while (now := vdostats()["data blocks used"]) > full - (60 << 20) // 4096:
        assert time.monotonic() < end, (full, now)
        time.sleep(0.5)
