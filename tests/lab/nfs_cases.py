"""What runs in the guest of nfs_guest.py: the permanent store on a real NFSv4.2 mount, whose server is made to fail.

The tests are near, the store is far. What is in it is looked at where it lies, at the server.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.drivers import answering, permanent
from tasks.drivers.permanent import MARKER, PermanentPlace, prove
from tasks.errors import GbsError, IntegrityError, StoreError, StoreFull, StoreNotMounted, StoreSilent, WriteLost
from tasks.model.manifest import MANIFEST
from tests.unit.points_site import STORE_ID, Site

EXPORT = "10.9.0.2:/"
FAR = Path("/mnt/exports/far")
"""The store, as its server has it."""
ANSWER_S = 6


def server(script: str) -> None:
    """Run a script where the far server is."""
    pid = Path("/run/site-far.pid").read_text().strip()
    subprocess.run(["nsenter", "--target", pid, "--net", "--mount", "bash", "-euc", script], check=True)


def cable(state: str) -> None:
    """Pull the cable between the sites (`down`), or put it in again (`up`)."""
    subprocess.run(["ip", "link", "set", "cable", state], check=True)


def export(options: str) -> None:
    """Export the store anew."""
    server(f"exportfs -ua; exportfs -o {options},no_subtree_check,fsid=0,sync 10.9.0.0/24:{FAR}; exportfs -f")


def unmount() -> None:
    subprocess.run(["umount", "--lazy", "/mnt/far"], check=True)


def mounted() -> str:
    """What findmnt says is mounted."""
    argv = ["findmnt", "--noheadings", "--output", "FSTYPE,SOURCE,OPTIONS", "/mnt/far"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="module", autouse=True)
def begun() -> None:
    """The child that asks is there, and the server's grace period after its start is over."""
    Path("/mnt/far").mkdir()
    (FAR / MARKER).write_text(STORE_ID)
    prove(PermanentPlace(Path("/mnt/far"), STORE_ID, "nfs4", EXPORT, "vers=4.2"))
    unmount()


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[PermanentPlace]:
    """The permanent store, empty but for its marker, and not mounted yet."""
    monkeypatch.setattr(answering, "PROBE_EVERY_S", 1)
    monkeypatch.setattr(permanent, "PROBE_EVERY_S", 1)
    monkeypatch.setattr(permanent, "ANSWER_DEADLINE_S", ANSWER_S)
    (FAR / MARKER).write_text(STORE_ID)
    yield PermanentPlace(Path("/mnt/far"), STORE_ID, "nfs4", EXPORT, "vers=4.2,timeo=20")
    cable("up")
    subprocess.run(["umount", "--lazy", "--force", "/mnt/far"], check=False, capture_output=True)
    assert list(Path("/mnt/far").iterdir()) == [], "nothing was written where the store was not"
    server(f"mount -o remount,rw {FAR}; rm -rf {FAR}/* {FAR}/.[!.]*")
    export("rw,no_root_squash")


@pytest.fixture
def site(place: PermanentPlace, tmp_path: Path) -> Site:
    prove(place)
    return Site(tmp_path, far=place)


def at_the_server(site: Site) -> dict[str, int | None]:
    """The night of each point, by manifest and sha256sum, on the server's own disk."""
    site.root, near = FAR / "web1", site.root
    try:
        return site.days()
    finally:
        site.root = near


def slow_night(site: Site, number: int) -> None:
    """A night whose copy takes about 8 s."""
    site.night(number, {"same": "always", "number": str(number), "large": "x" * (8 << 20)})
    site.config.write_text(site.config.read_text().replace("--numeric-ids", "--numeric-ids --bwlimit=1m"))


def quick_again(site: Site) -> None:
    site.config.write_text(site.config.read_text().replace(" --bwlimit=1m", ""))


def in_the_middle(work: Callable[[], object], fault: Callable[[], None]) -> GbsError | None:
    """Do `work`, and in the middle of its copy the fault; what came of it."""
    outcome: list[GbsError | None] = []

    def run() -> None:
        try:
            work()
            outcome.append(None)
        except GbsError as exc:
            outcome.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    ends_at = time.monotonic() + 60
    while not list(FAR.glob("web1/.sync/data/.large.*")):
        assert time.monotonic() < ends_at, "the copy did not begin"
        assert thread.is_alive(), outcome
        time.sleep(0.1)
    fault()
    thread.join(90)
    assert outcome, "it hangs"
    return outcome[0]


def wait_until(holds: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < ends_at
        time.sleep(0.5)


def answers(place: PermanentPlace) -> bool:
    try:
        prove(place)
    except StoreSilent:
        return False
    return True


def nothing_rotates(site: Site) -> None:
    """Whether the sync that failed left nothing, or what rsnapshot leaves of one: a copy of the newest point."""
    if (site.root / ".sync" / MANIFEST).exists():
        assert site.rotate() == []
    else:
        with pytest.raises(IntegrityError, match="a stamped sync"):
            site.rotate()


def sync_again(site: Site) -> None:
    """The error of a write that nobody waited for may come to the next who flushes; a task tries once more."""
    try:
        site.sync()
    except WriteLost:
        site.sync()


def require_good_again(site: Site) -> None:
    """The second night arrives after all, and the first is what it was."""
    quick_again(site)
    sync_again(site)
    site.rotate()
    assert at_the_server(site) == {"daily.0": 2, "daily.1": 1}


def processes(name: str) -> str:
    return subprocess.run(["pgrep", "--exact", name], capture_output=True, text=True, check=False).stdout


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
    found = in_the_middle(site.sync, lambda: server("rpc.nfsd 0; sleep 3; rpc.nfsd --no-nfs-version 3 3"))
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


def test_a_store_that_becomes_read_only_keeps_what_it_has(site: Site) -> None:
    site.keep(1)
    slow_night(site, 2)
    found = in_the_middle(site.sync, lambda: export("ro,no_root_squash"))
    assert "Read-only file system" in str(found)
    nothing_rotates(site)
    assert at_the_server(site) == {"daily.0": 1}
    export("rw,no_root_squash")
    require_good_again(site)


def test_root_that_is_squashed_is_told_and_nothing_is_rotated(site: Site) -> None:
    site.keep(1)
    export("rw,root_squash")
    site.night(2)
    with pytest.raises(StoreError, match="Permission denied: is root squashed"):
        site.sync()
    assert at_the_server(site) == {"daily.0": 1}
    export("rw,no_root_squash")
    require_good_again(site)
