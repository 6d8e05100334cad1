"""The permanent store on a real NFSv4.2 mount, whose server is made to fail; in the guest of nfs_guest.py."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tasks.drivers import permanent
from tasks.drivers.permanent import MARKER, PermanentPlace, prove
from tasks.errors import GbsError, StoreError, StoreNotMounted, StoreSilent
from tests.lab.nfs_sites import (
    ANSWER_S,
    EXPORT,
    FAR,
    RW,
    START,
    answers,
    at_the_server,
    cable,
    export,
    in_the_middle,
    mounted,
    nothing_rotates,
    processes,
    require_good_again,
    server,
    slow_night,
    unmount,
    wait_until,
)
from tests.unit.points_site import STORE_ID, Site


def test_it_is_mounted_and_proven(place: PermanentPlace) -> None:
    with pytest.raises(StoreNotMounted, match=r"10.9.0.2:/ is not mounted there; .*; mount 10.9.0.2:/ at /mnt/far"):
        prove(PermanentPlace(place.path, STORE_ID, "nfs4", EXPORT))
    prove(place)
    assert mounted().split()[:2] == ["nfs4", EXPORT]
    assert {"vers=4.2", "hard"} <= {*mounted().split()[2].split(",")}
    prove(place)
    assert len(mounted().splitlines()) == 1


def test_an_export_that_is_not_there_is_told(place: PermanentPlace) -> None:
    wrong = PermanentPlace(place.path, STORE_ID, "nfs4", f"{EXPORT}none", place.mount_options)
    with pytest.raises(StoreNotMounted, match=r"mount of 10.9.0.2:/none failed .*No such file"):
        prove(wrong)
    assert mounted() == ""


def test_another_store_is_refused(place: PermanentPlace) -> None:
    (FAR / MARKER).write_text("far-2")
    with pytest.raises(StoreNotMounted, match="the marker says 'far-2', not 'far-1'"):
        prove(place)


def test_a_store_without_its_marker_is_refused(place: PermanentPlace) -> None:
    (FAR / MARKER).unlink()
    with pytest.raises(StoreNotMounted, match=r"the marker \.gbs-store is missing"):
        prove(place)


def test_a_soft_mount_is_refused(place: PermanentPlace) -> None:
    subprocess.run(["mount", "-t", "nfs4", "-o", "vers=4.2,soft", EXPORT, "/mnt/far"], check=True)
    with pytest.raises(StoreNotMounted, match="soft mount"):
        prove(place)


def test_nights_are_hard_linked_points_at_the_server(site: Site) -> None:
    for number in (1, 2, 3, 4):
        site.night(number)
        subprocess.run(["chown", "1234:4321", str(site.source / "data/number")], check=True)
        site.sync()
        assert site.rotate() == (["weekly", "daily"] if number == 4 else ["daily"])
    assert at_the_server(site) == {"daily.0": 4, "daily.1": 3, "daily.2": 2, "weekly.0": 1}
    same = {(FAR / "web1" / point / "data/same").stat().st_ino for point in at_the_server(site)}
    assert len(same) == 1
    owned = (FAR / "web1/daily.0/data/number").stat()
    assert (owned.st_uid, owned.st_gid) == (1234, 4321)
    assert not list((FAR / "web1").glob(".*"))


def test_a_server_that_is_gone_holds_nobody(site: Site) -> None:
    site.keep(1)
    for _ in range(5):
        prove(site.far)  # until the server delegates the marker to us, and reading it asks nobody any more
    cable("down")
    began = time.monotonic()
    with pytest.raises(StoreSilent, match=r"store /mnt/far does not answer: no answer within 6 s"):
        prove(site.far)
    with pytest.raises(StoreSilent):
        site.sync()
    assert time.monotonic() - began < 10 * ANSWER_S
    cable("up")
    site.night(2)
    wait_until(lambda: answers(site.far))
    require_good_again(site)


def test_a_server_that_goes_in_the_middle_of_a_sync_ends_it(site: Site) -> None:
    site.keep(1)
    slow_night(site, 2)
    found = in_the_middle(site.sync, lambda: cable("down"))
    assert isinstance(found, StoreSilent)
    assert processes("rsnapshot") == ""
    cable("up")
    # Who was killed while it closed a file goes when the server is back.
    wait_until(lambda: processes("rsync") == "")
    require_good_again(site)
    assert not list((FAR / "web1").glob(".*"))


def test_a_server_that_restarts_in_the_middle_of_a_sync_delays_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permanent, "ANSWER_DEADLINE_S", 60)
    site.keep(1)
    slow_night(site, 2)
    found = in_the_middle(site.sync, lambda: server(f"rpc.nfsd 0; sleep 3; {START}"))
    assert found is None
    site.rotate()
    assert at_the_server(site) == {"daily.0": 2, "daily.1": 1}


def test_a_store_that_is_unmounted_in_the_middle_gets_no_stamp_elsewhere(site: Site) -> None:
    site.keep(1)
    slow_night(site, 2)
    found = in_the_middle(site.sync, unmount)
    assert isinstance(found, GbsError), found
    assert list(Path("/mnt/far").iterdir()) == []
    assert at_the_server(site) == {"daily.0": 1}
    prove(site.far)
    require_good_again(site)


def test_a_store_that_becomes_read_only_keeps_what_it_has(site: Site) -> None:
    site.keep(1)
    slow_night(site, 2)
    found = in_the_middle(site.sync, lambda: export("ro,no_root_squash"))
    assert "Read-only file system" in str(found)
    nothing_rotates(site)
    assert at_the_server(site) == {"daily.0": 1}
    export(RW)
    require_good_again(site)


def test_root_that_is_squashed_is_told_and_nothing_is_rotated(site: Site) -> None:
    site.keep(1)
    export("rw,root_squash")
    site.night(2)
    with pytest.raises(StoreError, match="Permission denied: is root squashed"):
        site.sync()
    assert at_the_server(site) == {"daily.0": 1}
    export(RW)
    require_good_again(site)
