"""What a store's bytes are: compared with du(1) and xfs_bmap(8) on an XFS, and with what was written."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.drivers.permanent import MARKER, PermanentPlace
from tasks.drivers.space import require, require_space, room, walk
from tasks.drivers.store import write_model
from tasks.errors import StoreFull
from tasks.model.facts_mounts import FileSystem
from tasks.model.manifest import NightCost, NightManifest
from tasks.model.need import Need, first_night, next_night
from tasks.model.room import KEPT_LEVELS, Level, Levels
from tasks.model.space import Walked, tally
from tasks.model.trend import outlook
from tests.unit.points_site import STORE_ID, Site

NOW = datetime(2026, 11, 26, tzinfo=UTC)
GIB = 1 << 30


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small XFS, which knows reflinks, on a loop device."""
    folder = tmp_path_factory.mktemp("xfs")
    image, place = folder / "image", folder / "mounted"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def du(*words: str | Path) -> int:
    argv = ["du", "-s", "-x", "-B1", *map(str, words)]
    return sum(int(line.split()[0]) for line in subprocess.check_output(argv, text=True).splitlines())


def data(path: Path, mib: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(str(path)).randbytes(mib << 20))
    return path


def test_hard_links_are_counted_as_du_does_and_a_clients_own_is_what_would_be_gone_without_it(xfs: Path) -> None:
    root = xfs / "web1"
    data(root / "daily.1/data/same", 3)
    data(root / "daily.1/data/old", 2)
    (root / "daily.0/data/empty").mkdir(parents=True)
    os.link(root / "daily.1/data/same", root / "daily.0/data/same")
    data(root / "daily.0/data/new", 1)
    (root / "daily.0/data/link").symlink_to("/etc/passwd")
    with (root / "daily.0/data/sparse").open("wb") as file:
        file.truncate(GIB)
    elsewhere = xfs / "template"
    elsewhere.mkdir()
    os.link(root / "daily.1/data/old", elsewhere / "old")
    found = [
        walk("web1", [("daily.1", root / "daily.1"), ("daily.0", root / "daily.0")], reflinks=True),
        walk("templates", [("one", elsewhere)], reflinks=True),
    ]
    total = tally(found, NOW, reflinks_seen=True)
    assert total.each_bytes == du("-l", root / "daily.1", root / "daily.0", elsewhere)
    assert total.once_bytes == total.extents_bytes == du(root / "daily.1", root / "daily.0", elsewhere)
    assert 1 << 20 <= found[0].trees[1].new_bytes < (1 << 20) + 100_000, "what the newest point alone has"
    without = du(root / "daily.1", root / "daily.0", elsewhere) - du(elsewhere)
    assert total.costs[0].own_bytes == without


def test_shared_extents_are_counted_once_as_the_file_system_has_them(xfs: Path) -> None:
    first = data(xfs / "images/1/vda.raw", 20)
    for number in (2, 3):
        clone = xfs / f"images/{number}/vda.raw"
        clone.parent.mkdir()
        subprocess.run(["cp", "--reflink=always", str(first), str(clone)], check=True)
        with clone.open("r+b") as file:  # so many blocks are its own then
            file.seek(number << 20)
            file.write(os.urandom(2 << 20))
    stranger = xfs / "recovery/vda.raw"
    stranger.parent.mkdir()
    subprocess.run(["cp", "--reflink=always", str(xfs / "images/3/vda.raw"), str(stranger)], check=True)
    subprocess.run(["sync", "-f", str(xfs)], check=True)
    found = [
        walk("VM web1", [(str(number), xfs / f"images/{number}") for number in (1, 2, 3)], reflinks=True),
        walk("recovery", [("recovery", stranger.parent)], reflinks=True),
    ]
    total = tally(found, NOW, reflinks_seen=True)
    assert total.once_bytes == du(xfs / "images/1", xfs / "images/2", xfs / "images/3", stranger.parent) == 80 << 20
    files = [first, xfs / "images/2/vda.raw", xfs / "images/3/vda.raw", stranger]
    blocks = {block for file in files for block in mapped(file)}
    assert total.extents_bytes == len(blocks) * 512
    without = len(blocks) - len({*mapped(stranger)})
    assert total.costs[0].own_bytes == without * 512
    assert total.costs[1].own_bytes == 0, "all of it is the third image's too"


def mapped(file: Path) -> Iterator[int]:
    """The sectors of a file, by xfs_bmap(8)."""
    for line in subprocess.check_output(["xfs_bmap", str(file)], text=True).splitlines()[1:]:
        sectors = line.split()[2]
        if sectors != "hole":
            begin, end = map(int, sectors.split(".."))
            yield from range(begin, end + 1)


EXTENTS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=4)


@given(st.lists(st.tuples(st.sampled_from("abc"), EXTENTS), max_size=6))
def test_every_block_is_counted_once_and_is_somebodys_alone_or_not(files: list[tuple[str, list]]) -> None:
    """A file's extents never overlap each other."""
    owners: dict[str, dict[int, tuple[tuple[int, int], ...]]] = {}
    blocks: dict[int, list[str]] = {}
    for inode, (owner, rows) in enumerate(files):
        mine = {block for start, length in rows for block in range(start, start + length)}
        owners.setdefault(owner, {})[inode] = tuple((block, 1) for block in sorted(mine))
        for block in mine:
            blocks.setdefault(block, []).append(owner)
    walks = []
    for owner, shared in owners.items():
        size = sum(len(rows) for rows in shared.values())
        walks.append(Walked(owner, size, size, len(shared), (), {}, shared))
    total = tally(walks, NOW, reflinks_seen=True)
    assert total.extents_bytes == len(blocks)
    for cost in total.costs:
        assert cost.own_bytes == sum(set(holders) == {cost.owner} for holders in blocks.values())


def test_room_is_what_df_says_and_what_does_not_fit_is_refused_in_one_line(xfs: Path) -> None:
    has = room(xfs / "..")
    assert has.vdo is None
    has = room(xfs)
    argv = ["df", "-B1", "--output=size,used,avail,itotal,iavail,source,fstype", str(xfs)]
    words = subprocess.check_output(argv, text=True).splitlines()[1].split()
    found = (has.size_bytes, has.used_bytes, has.free_bytes, has.inodes, has.free_inodes, has.source, has.fstype)
    assert found == (*map(int, words[:5]), *words[5:])
    require_space(xfs, 1 << 20, 1 << 20)
    with pytest.raises(StoreFull, match=r"mounted has no room: \d+ bytes needed, \d+ free; nothing was replaced"):
        require_space(xfs, 1 << 60, 0)
    with pytest.raises(StoreFull, match=r"for web1 \(1.0 TiB by its facts, and 2.0 GiB in reserve\) has no room"):
        require(xfs, Need(1 << 40, 0, "1.0 TiB by its facts"), 2 << 30, "web1")
    with pytest.raises(StoreFull, match=r"for web1 has no inodes left: 1000001000 needed"):
        require(xfs, Need(0, 10**9, "x"), 0, "web1")


def test_sync_that_does_not_fit_is_refused_before_it_begins_and_counts_only_what_is_new(
    xfs: Path, tmp_path: Path
) -> None:
    far = PermanentPlace(xfs / "far", STORE_ID, "local")
    far.path.mkdir()
    (far.path / MARKER).write_text(STORE_ID)
    site = Site(tmp_path, far=far)

    def sync(number: int, files: dict[str, str]) -> None:
        site.night(number, files)
        night = NightManifest.model_validate_json((site.source / "manifest.json").read_bytes())
        write_model(
            site.source / "manifest.json", night.model_copy(update={"size_bytes": sum(map(len, files.values()))})
        )
        site.sync()

    free = room(xfs).free_bytes
    large = {"large": "x" * int(free * 0.7)}
    sync(1, large)
    site.rotate()
    # Twice the large file would not fit; it is a hard link.
    sync(2, large | {"more": "y" * 100_000})
    site.rotate()
    assert site.days() == {"daily.0": 2, "daily.1": 1}
    said = r"far/web1 for web1 \(\d+.\d MiB that daily.0 has not\) has no room"
    with pytest.raises(StoreFull, match=said):
        sync(3, {"large": "z" * int(free * 0.7)})
    assert not (site.root / ".sync").exists()
    assert site.days() == {"daily.0": 2, "daily.1": 1}
    subprocess.run(["rm", "-r", str(far.path)], check=True)


def test_next_night_is_expected_as_the_last_ones_and_a_first_one_by_the_facts() -> None:
    costs = [NightCost(night=str(number), new_bytes=size, new_inodes=7) for number, size in enumerate((GIB, 90, 100))]
    need = next_night(costs)
    assert need is not None
    assert (need.size_bytes, need.inodes) == (100, 7), "an upgrade that rewrote everything once is no rule"
    assert next_night(()) is None
    rows = [
        FileSystem(mountpoint=place, source=place, fstype="xfs", size_bytes=99, used_bytes=used)
        for place, used in (("/", 10), ("/srv", 20), ("/scratch", 40), ("/home", 80))
    ]
    assert first_night(rows, ["/", "/srv", "/scratch", "/home/a"], ["/scratch/*"]).size_bytes == 30


def days(*taken: float, left: int = 100 * GIB, free_inodes: int | None = None, inodes: int = 0) -> list[Level]:
    return [
        Level(
            at=NOW + timedelta(days=day),
            taken_bytes=int(size * GIB),
            left_bytes=left,
            used_inodes=None if free_inodes is None else day * inodes,
            free_inodes=free_inodes,
        )
        for day, size in enumerate(taken)
    ]


def test_days_to_full_follow_the_trend_and_not_one_night() -> None:
    steady = outlook(days(*range(10, 40)), 10 * GIB)
    assert steady.days == pytest.approx(90)
    assert steady.a_day == pytest.approx(GIB)
    jumped = [*range(10, 25), *range(60, 75)]
    jumped[7] = 500
    assert outlook(days(*jumped), 0).days == pytest.approx(100 / 1.3, rel=0.6)
    twice_a_day = [
        *days(*range(6)),
        *(level.model_copy(update={"at": level.at + timedelta(hours=3)}) for level in days(*range(6))),
    ]
    assert outlook(twice_a_day, 0).days == pytest.approx(100)
    assert outlook(days(*range(10), free_inodes=1000, inodes=100), 0).reason == "inodes run out"
    assert outlook(days(*range(10), free_inodes=1000, inodes=100), 0).days == pytest.approx(10)


def test_days_to_full_are_not_guessed() -> None:
    assert outlook([], 0).reason == "no night has been noted"
    assert outlook(days(1, 2, 3), 0).reason == "3 of 5 days noted"
    assert outlook(days(5, 5, 5, 5, 5), 0).reason == "it does not grow"
    assert outlook(days(9, 8, 7, 6, 5, 4), 0).days is None
    assert outlook(days(1, 1.001, 1.002, 1.003, 1.004), 0).reason == "not within ten years"
    full = outlook(days(1, 2, 3, 4, 5, left=GIB), 2 * GIB)
    assert (full.days, full.reason) == (0, "no bytes are left")


def test_levels_are_pruned() -> None:
    kept = Levels()
    for level in days(*range(KEPT_LEVELS + 3)):
        kept = kept.with_one(level)
    assert len(kept.levels) == KEPT_LEVELS
    assert kept.levels[-1].taken_bytes == (KEPT_LEVELS + 2) * GIB
