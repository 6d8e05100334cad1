"""The permanent store on a real NFSv4.2 mount: what is below the export gets full, goes, or is another one.

In the guest of nfs_guest.py.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tasks.drivers import permanent
from tasks.drivers.permanent import MARKER, PermanentPlace, prove
from tasks.drivers.rsnapshot import render_config, rsync_options
from tasks.errors import StoreError, StoreFull, StoreNotMounted, WriteLost
from tests.lab.nfs_sites import (
    FAR,
    NEAR,
    NEAR_EXPORT,
    RW,
    START,
    another_disk,
    at_the_server,
    export,
    in_the_middle,
    keep_as_stage_2_does,
    limit,
    mount_at_the_server,
    nothing_rotates,
    require_good_again,
    server,
    slow_night,
    unmount,
    unmount_all,
    unmount_at_the_server,
)
from tests.unit.points_site import STORE_ID, Site

XFS = ["mkfs.xfs", "-q"]


def test_a_store_that_gets_full_keeps_what_it_has(site: Site) -> None:
    site.keep(1)
    server(f"fallocate -l $(( $(stat -f -c '%a * %S' {FAR}) - (8 << 20) )) {FAR}/ballast")
    site.night(2, {"same": "always", "number": "2", "large": "x" * (20 << 20)})
    with pytest.raises((StoreFull, WriteLost), match=r"no room|No space left on device"):
        site.sync()
    nothing_rotates(site)
    assert at_the_server(site) == {"daily.0": 1}
    server(f"rm {FAR}/ballast")
    require_good_again(site)


def test_a_store_without_inodes_keeps_what_it_has(place: PermanentPlace, tmp_path: Path) -> None:
    with another_disk(["mkfs.ext4", "-q", "-N", "2000"]):
        prove(place)
        site = Site(tmp_path, far=place)
        site.keep(1)
        server(f"mkdir {FAR}/ballast; touch {FAR}/ballast/{{1..1000}}")
        site.night(2)
        with pytest.raises(StoreFull, match="for web1 has no inodes left"):
            site.sync()
        nothing_rotates(site)
        assert at_the_server(site) == {"daily.0": 1}
        server(f"rm -r {FAR}/ballast")
        require_good_again(site)


def test_a_store_at_its_quota_keeps_what_it_has(place: PermanentPlace, tmp_path: Path) -> None:
    """A quota of the project: what a server gives a site; XFS says of it that the disk is full."""
    with another_disk(XFS, "prjquota") as disk:
        limit(disk, "project -s -p /mnt/quota 7; limit -p bhard=8m 7")
        prove(place)
        site = Site(tmp_path, far=place)
        site.keep(1)
        site.night(2, {"same": "always", "number": "2", "large": "x" * (9 << 20)})
        with pytest.raises(StoreFull, match=r"9\.0 MiB that daily\.0 has not\b.* 8388608 free"):
            site.sync()
        nothing_rotates(site)
        assert at_the_server(site) == {"daily.0": 1}
        site.night(2)
        require_good_again(site)


def test_the_quota_of_whom_all_are_squashed_to_keeps_what_there_is(place: PermanentPlace, tmp_path: Path) -> None:
    """A quota of the user, as root itself has none."""
    with another_disk(XFS, "uquota") as disk:
        limit(disk, "limit -u bhard=2m 1234")
        server(f"chown -R 1234:1234 {FAR}")
        export("rw,all_squash,anonuid=1234,anongid=1234")
        prove(place)
        site = Site(tmp_path, far=place)
        options = rsync_options(fake_super=True)
        site.config.write_text(render_config(site.source, site.root, site.lock, site.rules.retain, options))
        site.keep(1)
        site.night(2, {"same": "always", "number": "2", "large": "x" * (3 << 20)})
        with pytest.raises(StoreFull, match="no room: Disk quota exceeded"):
            site.sync()
        nothing_rotates(site)
        assert at_the_server(site) == {"daily.0": 1}
        site.night(2)
        require_good_again(site)


def test_another_export_in_its_place_is_refused(place: PermanentPlace) -> None:
    (NEAR / MARKER).write_text(STORE_ID)
    subprocess.run(["mount", "-t", "nfs4", "-o", "vers=4.2", NEAR_EXPORT, "/mnt/far"], check=True)
    with pytest.raises(StoreNotMounted, match=r"10.9.0.2:/ is not mounted there; 10.9.0.1:/ \(nfs4\) is mounted"):
        prove(place)


def test_a_store_that_is_swapped_in_the_middle_gets_nothing_of_the_other_ones(site: Site) -> None:
    (NEAR / MARKER).write_text("near-1")
    site.keep(1)
    slow_night(site, 2)

    def swap() -> None:
        unmount()
        subprocess.run(["mount", "-t", "nfs4", "-o", "vers=4.2", NEAR_EXPORT, "/mnt/far"], check=True)

    found = in_the_middle(site.sync, swap)
    assert "/mnt/far/web1: it was unmounted, or another was mounted, while it was written to" in str(found)
    assert [path.name for path in NEAR.iterdir()] == [MARKER]
    with pytest.raises(StoreNotMounted):
        prove(site.far)
    assert at_the_server(site) == {"daily.0": 1}
    unmount_all()
    prove(site.far)
    require_good_again(site)


def test_an_export_that_is_taken_away_in_the_middle_is_told(site: Site) -> None:
    site.keep(1)
    slow_night(site, 2)
    found = in_the_middle(site.sync, lambda: server("exportfs -ua; exportfs -f"))
    assert "Permission denied" in str(found)
    with pytest.raises(StoreError, match="or is it not exported to this machine"):
        prove(site.far)
    assert at_the_server(site) == {"daily.0": 1}
    export(RW)
    prove(site.far)
    require_good_again(site)


def test_a_disk_that_dies_below_the_server_keeps_what_it_has(
    place: PermanentPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with another_disk(XFS) as disk:
        prove(place)
        site = Site(tmp_path, far=place)
        site.keep(1)
        slow_night(site, 2)
        found = in_the_middle(site.sync, lambda: server(f"xfs_io -x -c shutdown {FAR}"))
        assert "Input/output error" in str(found)
        assert len(str(found)) < 200, "one line"
        unmount_all()
        server("rpc.nfsd 0")  # it holds the disk
        unmount_at_the_server()
        mount_at_the_server(disk)
        monkeypatch.setattr(permanent, "ANSWER_DEADLINE_S", 60)  # the server's grace period
        server(START)
        prove(place)
        assert at_the_server(site) == {"daily.0": 1}
        require_good_again(site)


def test_a_disk_that_is_replaced_below_the_mount_is_told(site: Site) -> None:
    """The file handles of whom has it mounted lead nowhere then, or to the new disk."""
    site.keep(1)
    with another_disk(XFS):
        (FAR / MARKER).unlink()
        site.night(2)
        with pytest.raises(StoreError, match=r"Stale file handle: the export was made anew|\.gbs-store is missing"):
            keep_as_stage_2_does(site)
        with pytest.raises(StoreNotMounted, match=r"the marker \.gbs-store is missing"):
            keep_as_stage_2_does(site)
        assert list(FAR.iterdir()) == []
    assert at_the_server(site) == {"daily.0": 1}
    keep_as_stage_2_does(site)
    assert at_the_server(site) == {"daily.0": 2, "daily.1": 1}
