"""rsnapshot itself, run in a folder: what a night does to restore points, and what a failed one leaves alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.drivers import process, restore_points
from tasks.drivers.restore_points import points
from tasks.drivers.store import write_model
from tasks.errors import CommandFailed, IntegrityError, StoreError, StoreFull
from tasks.model.names import new_id
from tasks.model.retention import Pin, Rules
from tests.unit.points_site import RULES, Site
from tests.unit.records import NIGHT, night_manifest

DAILY = Rules(RULES.retain[:1], 1)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def snapshot(root: Path) -> dict[str, tuple[int, int, int, int]]:
    """Inode, mode, time and size of everything below the points."""
    hidden = {path for path in root.iterdir() if path.name.startswith(".")}
    found = [path for path in sorted(root.rglob("*")) if not hidden & {path, *path.parents}]
    statuses = {path: path.lstat() for path in found}
    return {
        str(path.relative_to(root)): (status.st_ino, status.st_mode, status.st_mtime_ns, status.st_size)
        for path, status in statuses.items()
    }


def test_configuration_is_one_that_rsnapshot_accepts(site: Site) -> None:
    site.night(1)
    subprocess.run(["rsnapshot", "-c", str(site.config), "configtest"], check=True, capture_output=True)


def test_nights_become_hard_linked_points_that_sha256sum_confirms(site: Site) -> None:
    assert [site.keep(number) for number in (1, 2)] == [["daily"]] * 2
    assert site.days() == {"daily.0": 2, "daily.1": 1}
    same = [site.root / f"daily.{number}" / "data" / "same" for number in range(2)]
    assert len({path.stat().st_ino for path in same}) == 1
    assert same[0].stat().st_nlink == 2
    assert not (site.root / ".sync").exists()


def test_file_written_again_within_the_second_is_in_the_next_point(site: Site) -> None:
    for number in (1, 2):
        site.night(number)
        os.utime(site.source / "data" / "number", ns=(0, 1_700_000_000_000_000_000 + number))
        site.sync()
        site.rotate()
    assert site.days() == {"daily.0": 2, "daily.1": 1}


def test_oldest_daily_becomes_weekly_when_it_is_old_enough(site: Site) -> None:
    for name, number in [("weekly.0", 1), ("daily.2", 8), ("daily.1", 9), ("daily.0", 10)]:
        site.place(name, number)
    assert site.keep(11) == ["weekly", "daily"]
    assert site.days() == {"daily.0": 11, "daily.1": 10, "daily.2": 9, "weekly.0": 8, "weekly.1": 1}


def test_older_points_do_not_change_when_the_source_changes_owner_mode_or_content(site: Site) -> None:
    site.keep(1)
    before = snapshot(site.root / "daily.0")
    site.night(2, {"same": "always", "number": "changed"})
    # Not the way of stage 1: even a source that is changed in place must not reach older points.
    os.chmod(site.source / "data" / "same", 0o600)
    os.chown(site.source / "data" / "same", 1234, 1234)
    site.sync()
    site.rotate()
    assert snapshot(site.root / "daily.1") == before
    assert (site.root / "daily.1" / "data" / "same").stat().st_uid == os.getuid()
    assert (site.root / "daily.0" / "data" / "same").stat().st_uid == 1234
    assert site.days() == {"daily.0": 2, "daily.1": 1}


def test_same_night_twice_does_not_rotate(site: Site) -> None:
    site.keep(1)
    before = snapshot(site.root)
    site.sync()
    assert site.rotate() == []
    assert snapshot(site.root) == before


def test_rotating_without_a_new_sync_is_refused(site: Site) -> None:
    site.place("daily.1", 1)
    site.place("daily.0", 2)
    for _ in range(3):
        with pytest.raises(IntegrityError, match="expected a stamped sync, found none"):
            site.rotate()
    assert site.days() == {"daily.0": 2, "daily.1": 1}


def test_sync_that_fails_leaves_points_and_refuses_rotation(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.place("daily.0", 1)
    before = snapshot(site.root)
    site.night(2)
    failing = site.config.with_name("rsync")
    failing.write_text("#!/bin/sh\necho 'rsync: No such thing' >&2\nexit 23\n")
    failing.chmod(0o755)
    text = site.config.read_text()
    site.config.write_text(text.replace(shutil.which("rsync") or "", str(failing)))
    with pytest.raises(CommandFailed, match=r"(?s)rsnapshot sync of web1.*No such thing"):
        site.sync()
    with pytest.raises(IntegrityError, match="a stamped sync"):
        site.rotate()
    failing.write_text("#!/bin/sh\necho 'write failed: No space left on device (28)' >&2\nexit 11\n")
    with pytest.raises(StoreFull):
        site.sync()
    assert snapshot(site.root) == before
    site.config.write_text(text)
    site.sync()
    assert site.rotate() == ["daily"]


def break_rsync(site: Site, script: str) -> None:
    """Let rsnapshot call a script in place of rsync; `$real` is that."""
    wrapper, real = site.config.with_name("rsync"), shutil.which("rsync") or ""
    wrapper.write_text(f"#!/bin/sh\nreal={real}\n{script}\n")
    wrapper.chmod(0o755)
    site.config.write_text(site.config.read_text().replace(real, str(wrapper)))


def test_failed_sync_is_told_in_one_line_by_what_rsync_said(site: Site) -> None:
    """The report had all of rsnapshot's output, some twenty lines, in the place of a reason."""
    site.night(1)
    break_rsync(site, "echo 'rsync: [receiver] close failed: Input/output error (5)'; exit 11")
    with pytest.raises(CommandFailed) as told:
        site.sync()
    said = "rsnapshot sync of web1 failed with status 1: rsync: [receiver] close failed: Input/output error (5)"
    assert str(told.value) == said


def test_quota_is_called_a_quota(site: Site) -> None:
    """It was told as too few bytes, and df said that there were enough."""
    site.night(1)
    break_rsync(site, "echo 'rsync: [receiver] write failed: Disk quota exceeded (122)' >&2; exit 11")
    with pytest.raises(StoreFull, match="has no room: Disk quota exceeded; look at df, df -i and its quotas"):
        site.sync()


def test_store_that_is_swapped_while_it_is_written_to_gets_no_stamp(site: Site) -> None:
    """What an earlier run had begun in the other store was stamped there, and its data were not."""
    site.night(1)
    other = site.far.path.with_name("other")
    (other / "web1/.sync/data").mkdir(parents=True)
    for name in ("SHA256SUMS", "facts.json"):
        shutil.copy(site.source / name, other / "web1/.sync")
    break_rsync(site, f'"$real" "$@" && mv {site.far.path} {site.far.path}.aside && mv {other} {site.far.path}')
    with pytest.raises(StoreError, match="another was mounted, while it was written to"):
        site.sync()
    with pytest.raises(IntegrityError, match="a stamped sync"):
        site.rotate()


def test_leftover_sync_with_shared_inodes_is_not_written_into(site: Site) -> None:
    """rsync would change owners and modes in place, and with them those of the older point."""
    site.keep(1)
    left = site.root / ".sync"
    subprocess.run(["cp", "-al", str(site.root / "daily.0"), str(left)], check=True)
    (left / "manifest.json").unlink()
    before = snapshot(site.root / "daily.0")
    site.night(2)
    os.chmod(site.source / "data" / "same", 0o640)
    site.sync()
    site.rotate()
    assert snapshot(site.root / "daily.1") == before
    assert site.days() == {"daily.0": 2, "daily.1": 1}


def test_source_without_manifest_gives_no_stamp(site: Site) -> None:
    site.night(1)
    (site.source / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match="a night with a manifest"):
        site.sync()
    with pytest.raises(IntegrityError, match="a stamped sync"):
        site.rotate()


def test_source_whose_listing_is_not_its_manifests_gives_no_stamp(site: Site) -> None:
    site.night(1)
    (site.source / "SHA256SUMS").write_text("")
    with pytest.raises(IntegrityError, match="SHA256SUMS"):
        site.sync()
    assert not (site.root / ".sync" / "manifest.json").exists()


def test_source_that_vanished_leaves_points(site: Site) -> None:
    site.place("daily.0", 1)
    shutil.rmtree(site.source)
    with pytest.raises((CommandFailed, IntegrityError)):
        site.sync()
    assert site.days() == {"daily.0": 1}


def test_newest_point_of_the_future_is_told_and_not_called_done(site: Site) -> None:
    """After a night with a wrong clock nothing rotated for a year, and every night said it was there already."""
    site.place("daily.0", 365)
    site.night(2)
    site.sync()
    with pytest.raises(IntegrityError, match="was a clock wrong"):
        site.rotate()
    assert site.days() == {"daily.0": 365}


@pytest.mark.parametrize("done", range(9))
def test_rotation_killed_between_any_two_renames_costs_no_point(
    site: Site, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    """rsnapshot's own frees the last place again, and an older point goes without a new one in its stead."""
    for name, number in [("weekly.1", 1), ("weekly.0", 8), ("daily.2", 15), ("daily.1", 16), ("daily.0", 17)]:
        site.place(name, number)
    site.night(18)
    site.sync()
    renames, rename = iter(range(done)), Path.rename

    def killed(self: Path, target: Path) -> Path:
        if next(renames, None) is None:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with suppress(KeyboardInterrupt):
            restore_points._rotate(site.root, site.far.path, site.rules, datetime.now(UTC), 0)
    there = {*site.days().values()}
    assert there >= ({8, 15, 16, 17, 18} if 18 in there else {1, 8, 15, 16, 17}), "one goes when the new one is there"
    site.sync()
    site.rotate()
    kept = {"daily.0": 18, "daily.1": 17, "daily.2": 16, "weekly.0": 15, "weekly.1": 8}
    assert {name: day for name, day in site.days().items() if "kept." not in name} == kept
    site.keep(19)
    kept = {"daily.0": 19, "daily.1": 18, "daily.2": 17, "weekly.0": 15, "weekly.1": 8}
    assert site.days() == kept
    assert sorted(path.name for path in site.root.iterdir()) == [*kept]


def test_point_is_renamed_before_it_is_removed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point that was half removed when the run was killed still had its manifest and looked like a backup."""
    for name, number in [("daily.2", 1), ("daily.1", 2), ("daily.0", 3)]:
        site.place(name, number)
    site.night(4)
    site.sync()
    site.rules = DAILY

    def fail(folder: Path, watch: Any) -> None:
        raise CommandFailed("rm", 1, f"{folder}: Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(restore_points, "remove", fail)
        with pytest.raises(CommandFailed, match=r"\.trash-20\d\d-\d\d-\d\d-kept\.20261103T"):
            site.rotate()
    assert site.days() == {"daily.0": 4, "daily.1": 3, "daily.2": 2}
    assert site.keep(5) == ["daily"]
    assert sorted(path.name for path in site.root.iterdir()) == ["daily.0", "daily.1", "daily.2"]


def test_points_are_those_of_rsnapshot_in_order(site: Site) -> None:
    for name in ("daily.10", "daily.2", "weekly.0", "daily.x", "daily", "hourly.0", "_delete.1", ".sync", "daily.²"):
        (site.root / name).mkdir()
    write_model(site.root / "daily.2" / "manifest.json", night_manifest())
    found = points(site.root)
    assert list(found) == ["daily.2", "daily.10", "weekly.0"]
    assert found["daily.10"] is None
    assert found["daily.2"] is not None
    assert found["daily.2"].id == new_id(NIGHT)
    assert points(site.root / "nowhere") == {}
    assert isinstance(NIGHT, datetime)


def test_rsnapshot_is_given_a_deadline(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.night(1)
    seen: list[float] = []
    run = process.run

    def watch(argv: list[str], *, deadline_s: float, **others: Any) -> process.Finished:
        seen.append(deadline_s)
        return run(argv, deadline_s=deadline_s, **others)

    monkeypatch.setattr(process, "run", watch)
    site.sync()
    assert seen == [60]


def test_point_that_is_given_up_can_be_had_back_until_its_day(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.rules = DAILY
    for number in range(1, 5):
        site.night(number)
        site.sync()
        restore_points.rotate(site.far, site.root, site.rules, 3)
    assert restore_points.tidy(site.far, site.root) == 0
    (trash,) = site.root.glob(".trash-*")
    assert trash.name[:17] == f".trash-{datetime.now(UTC).date() + timedelta(days=3)}"
    argv = ["sha256sum", "--check", "--quiet", "--strict", "../SHA256SUMS"]
    subprocess.run(argv, cwd=trash / "data", check=True, capture_output=True)
    trash.rename(trash.with_name(f".trash-{datetime.now(UTC).date()}-daily.2"))
    assert restore_points.tidy(site.far, site.root) == 1
    assert site.days() == {"daily.0": 4, "daily.1": 3, "daily.2": 2}
    assert not list(site.root.glob(".*"))


@pytest.mark.parametrize("content", ["{", None], ids=["unreadable", "gone"])
def test_pinned_night_stays_though_its_manifest_is_lost(site: Site, content: str | None) -> None:
    """It was given up, pinned as it was: whose night it is was only asked of the manifest."""
    site.rules = DAILY
    site.keep(1)
    first = points(site.root)["daily.0"]
    assert first is not None
    until = datetime.now(UTC).date() + timedelta(days=30)
    restore_points.pin(site.root, Pin(night=first.id, until=until, reason="audit"), first.id)
    for number in range(2, 6):
        site.keep(number)
    manifest = site.root / f"kept.{first.id}/manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    before = snapshot(manifest.parent)
    for number in range(6, 8):
        site.keep(number)
        days = {f"daily.{age}": number - age for age in range(3)}
        assert site.days() == {**days, f"kept.{first.id}": None}
    assert snapshot(manifest.parent) == before
    (point,) = [point for point in restore_points.retained(site.root) if point.name == f"kept.{first.id}"]
    assert (point.night, point.sound) == (first.id, False)


def test_point_of_the_cascade_whose_manifest_cannot_be_read_stays(site: Site) -> None:
    """It may be the pinned one."""
    site.rules = DAILY
    site.keep(1)
    (site.root / "daily.0/manifest.json").write_text("{")
    for number in range(2, 6):
        site.keep(number)
    assert site.days() == {"daily.0": 5, "daily.1": 4, "daily.2": 3, "kept.unknown.0": None}
    assert (site.root / "kept.unknown.0/data/number").read_text() == "1"


def test_pinned_night_is_kept_by_its_id(site: Site) -> None:
    site.rules = DAILY
    site.keep(1)
    first = points(site.root)["daily.0"]
    assert first is not None
    until = datetime.now(UTC).date() + timedelta(days=30)
    restore_points.pin(site.root, Pin(night=first.id, until=until, reason="audit"), first.id)
    for number in range(2, 6):
        site.keep(number)
    assert site.days() == {"daily.0": 5, "daily.1": 4, "daily.2": 3, f"kept.{first.id}": 1}
    restore_points.pin(site.root, None, first.id)
    site.keep(6)
    assert site.days() == {"daily.0": 6, "daily.1": 5, "daily.2": 4}
