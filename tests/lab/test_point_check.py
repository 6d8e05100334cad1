"""Restore points read again where they lie: what is found is what sha256sum finds, and what is healed is as it was."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tasks.drivers import restore_points
from tasks.drivers.point_check import Checked, check_points
from tasks.drivers.restore_points import points, retained
from tasks.model.manifest import OWN
from tasks.model.retention import Reading
from tests.unit.points_site import Site
from tests.unit.records import NIGHT


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    for number in (1, 2, 3):
        site.keep(number)
    return site


def check(site: Site, percent: float = 100) -> dict[str, Checked]:
    return {row.point: row for row in check_points(site.root, site.source / "data", percent, 1)}


def sha256sum_is_content(site: Site, point: str) -> bool:
    argv = ["sha256sum", "--check", "--quiet", "--strict", "../SHA256SUMS"]
    return subprocess.run(argv, cwd=site.root / point / "data", check=False, capture_output=True).returncode == 0


def flip_a_bit(path: Path) -> None:
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def become_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def become_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: list[Callable[[Path], None]] = [
    flip_a_bit, lambda path: os.truncate(path, 1), Path.unlink, become_a_link, become_a_fifo,
]  # fmt: skip


def test_whole_points_are_read_once_for_each_inode(site: Site) -> None:
    found = check(site)
    assert [*found] == ["daily.0", "daily.1", "daily.2"]
    assert [row.files for row in found.values()] == [2, 2, 2]
    assert [row.read_bytes for row in found.values()] == [len("always") + 1, 1, 1]
    assert not any(row.damaged for row in found.values())


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_is_healed_by_the_overnight_copy(site: Site, damage: Callable[[Path], None]) -> None:
    damage(site.root / "daily.1/data/same")
    found = check(site)
    assert found["daily.1"].damaged or found["daily.0"].damaged
    assert all(row.healed == row.damaged for row in found.values())
    assert all(sha256sum_is_content(site, point) for point in found)
    assert not any(row.damaged for row in check(site).values())
    assert not list(site.root.glob(".heal*"))


def test_damaged_inode_is_healed_in_every_point_with_its_owner_mode_and_time(site: Site) -> None:
    file = site.root / "daily.0/data/same"
    os.chown(file, 1234, 4321)
    file.chmod(0o640)
    before = file.stat()
    flip_a_bit(file)
    assert check(site)["daily.0"].healed == ("/same",)
    after = [(site.root / f"daily.{number}/data/same").stat() for number in range(3)]
    assert len({status.st_ino for status in after}) == 1
    assert after[0].st_ino != before.st_ino
    for attribute in ("st_uid", "st_gid", "st_mode", "st_mtime_ns", "st_nlink"):
        assert getattr(after[0], attribute) == getattr(before, attribute)


def test_what_nobody_has_stays_damaged_and_makes_the_point_unsound(site: Site) -> None:
    flip_a_bit(site.root / "daily.2/data/number")
    found = check(site)
    assert (found["daily.2"].damaged, found["daily.2"].healed) == (("/number",), ())
    assert not found["daily.0"].damaged
    assert not sha256sum_is_content(site, "daily.2")
    night = found["daily.2"].night
    now = NIGHT + timedelta(days=9)
    restore_points.note(site.root, {night: Reading(at=now, percent=100, damaged=("/number",))})
    restore_points.note(site.root, {"gone": Reading(at=now, percent=100)})
    assert [point.sound for point in retained(site.root)] == [True, True, False]
    restore_points.note(site.root, {night: Reading(at=now, percent=2)})
    assert [point.sound for point in retained(site.root)] == [True, True, False], "a sample does not make it whole"
    assert {*restore_points.readings(site.root).nights} == {night}
    restore_points.note(site.root, {night: Reading(at=now, percent=100)})
    assert all(point.sound for point in retained(site.root))


def test_point_whose_listing_says_otherwise_keeps_what_it_has(site: Site) -> None:
    """An inode that is right for an older point and wrong for a newer one: it must not be taken from the first."""
    wrong, right = site.root / "daily.0/data/number", site.root / "daily.1/data/number"
    wrong.unlink()
    os.link(right, wrong)
    found = check(site)
    assert (found["daily.0"].healed, found["daily.1"].damaged) == (("/number",), ())
    assert all(sha256sum_is_content(site, point) for point in found)


def test_healing_that_was_killed_does_not_stop_the_next(site: Site) -> None:
    for name in (".heal", ".heal-link"):
        (site.root / name).write_text("half")
    flip_a_bit(site.root / "daily.0/data/same")
    assert check(site)["daily.0"].healed == ("/same",)
    assert not list(site.root.glob(".heal*"))


def test_name_that_is_no_text_is_noted_all_the_same(site: Site) -> None:
    site.night(4, {os.fsdecode(b"na\xefve"): "x", "same": "always"})
    site.sync()
    site.rotate()
    for folder in (site.root / "daily.0", site.source):
        (folder / "data" / os.fsdecode(b"na\xefve")).unlink()
    found = check(site)["daily.0"]
    assert (found.damaged, found.healed) == (("/na\\xefve",), ())
    restore_points.note(site.root, {found.night: Reading(at=NIGHT, percent=100, damaged=found.damaged)})
    assert not retained(site.root)[0].sound


def test_listing_that_is_not_the_manifests_is_damage(site: Site) -> None:
    flip_a_bit(site.root / "daily.0/SHA256SUMS")
    assert check(site)["daily.0"].damaged == ("SHA256SUMS: is not the one of the manifest",)


def test_manifest_that_cannot_be_read_is_damage_and_stops_nobody_else(site: Site) -> None:
    (site.root / "daily.1/manifest.json").write_text("{")
    found = check(site)
    assert found["daily.1"].damaged == ("manifest.json: cannot be read",)
    assert not found["daily.0"].damaged
    site.night(4)
    site.sync()
    assert "daily" in site.rotate()
    assert points(site.root)["daily.2"] is None


@pytest.mark.parametrize(("old", "field"), [(False, "client"), (False, "listing_sha256"), (True, "listing_sha256")])
def test_manifest_with_a_flipped_bit_is_healed_by_the_overnight_copy(site: Site, old: bool, field: str) -> None:
    manifest, good = site.root / "daily.0/manifest.json", site.source / "manifest.json"
    if old:  # without a sha256 of its own: only what it says of others gives it away
        record = json.loads(good.read_text())
        del record[OWN]
        for path in (manifest, good):
            path.write_text(json.dumps(record))
    content = bytearray(manifest.read_bytes())
    content[content.index(f'"{field}": "'.encode()) + len(field) + 5] ^= 1
    manifest.write_bytes(content)
    found = check(site)["daily.0"]
    assert found.damaged == found.healed == ("manifest.json: cannot be read",)
    assert manifest.read_bytes() == good.read_bytes()
    assert not any(row.damaged for row in check(site).values())


def test_damaged_manifest_of_the_overnight_copy_is_healed_by_its_point(site: Site) -> None:
    manifest = site.source / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b"web1", b"web0"))
    found = check(site)
    assert (
        found["daily.0"].damaged == found["daily.0"].healed == ("the overnight copy's manifest.json: cannot be read",)
    )
    assert not found["daily.1"].damaged
    assert manifest.read_bytes() == whole


def test_manifest_that_nobody_has_another_of_stays_damaged(site: Site) -> None:
    manifest = site.root / "daily.1/manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"web1", b"web0"))
    found = check(site)["daily.1"]
    assert (found.damaged, found.healed) == (("manifest.json: cannot be read",), ())


def test_sample_reads_a_part(site: Site) -> None:
    site.night(4, {str(number): "x" for number in range(200)})
    site.sync()
    site.rotate()
    assert 20 < check(site, 25)["daily.0"].files < 100


def test_folder_that_became_a_link_leads_nowhere(site: Site, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    site.night(4, {"same": "always", "number": "4"})
    (site.source / "data/etc").mkdir()
    (site.source / "data/etc/passwd").write_text("root")
    listing = site.source / "SHA256SUMS"
    argv = ["sh", "-c", "cd data && sha256sum etc/passwd number same"]
    listing.write_bytes(subprocess.run(argv, cwd=site.source, check=True, capture_output=True).stdout)
    site.publish(4)
    site.sync()
    site.rotate()
    data = site.root / "daily.0/data"
    (data / "etc/passwd").unlink()
    (data / "etc").rmdir()
    (data / "etc").symlink_to(outside)
    assert check(site)["daily.0"].damaged == ("/etc/passwd",)
    assert not check(site)["daily.0"].healed
    assert list(outside.iterdir()) == []
