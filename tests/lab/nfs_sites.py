"""For the cases that run in the guest of nfs_guest.py: two sites, a store of the near one at the far one, and faults.

The tests are near, the store is far. What is in it is looked at where it lies, at the server.
"""

from __future__ import annotations

import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.drivers import answering, permanent
from tasks.drivers.permanent import MARKER, PermanentPlace, prove
from tasks.errors import GbsError, IntegrityError, StoreSilent, WriteLost
from tasks.model.manifest import MANIFEST
from tests.unit.points_site import STORE_ID, Site

EXPORT, NEAR_EXPORT = "10.9.0.2:/", "10.9.0.1:/"
FAR, NEAR = Path("/mnt/exports/far"), Path("/mnt/exports/near")
"""The stores, as their servers have them: that of the near site is at the far one."""
RW = "rw,no_root_squash"
START = "rpc.nfsd --no-nfs-version 3 3"
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


@contextmanager
def another_disk(mkfs: list[str], options: str = "defaults") -> Iterator[str]:
    """Export another, new file system meanwhile; the disk that it is on."""
    image = "/var/lib/gbs-lab/another.disk"
    script = f"truncate --size=320M {image}; {shlex.join(mkfs)} {image} >/dev/null; losetup --find --show {image}"
    disk = subprocess.run(["bash", "-euc", script], check=True, capture_output=True, text=True).stdout.strip()
    try:
        mount_at_the_server(disk, options)
        (FAR / MARKER).write_text(STORE_ID)
        subprocess.run(["sync", "--file-system", str(FAR)], check=True)
        yield disk
    finally:
        unmount_all()
        unmount_at_the_server()
        subprocess.run(["losetup", "--detach", disk], check=True)
        Path(image).unlink()


def limit(disk: str, what: str) -> None:
    """Set a quota on the file system of a disk, as xfs_quota(8) has it."""
    # At a place of its own: where the export is, the tool would find the file system below.
    commands = shlex.join(["xfs_quota", "-x", *(f"-c{command}" for command in what.split("; ")), "/mnt/quota"])
    server(f"mount --mkdir {disk} /mnt/quota; {commands} >/dev/null; umount /mnt/quota")


def mount_at_the_server(disk: str, options: str = "defaults") -> None:
    """Mount a file system where the export is, as the server and its operator see it."""
    mount = f"mount -o {options} {disk} {FAR}"
    subprocess.run(["bash", "-euc", mount], check=True)
    server(mount)
    export(RW)


def unmount_at_the_server() -> None:
    server(f"exportfs -ua; exportfs -f; umount --lazy {FAR}")
    subprocess.run(["umount", "--lazy", str(FAR)], check=True)
    export(RW)


def unmount() -> None:
    subprocess.run(["umount", "--lazy", "/mnt/far"], check=True)


def unmount_all() -> None:
    """Whatever is mounted as the store goes, also when its server is gone."""
    while mounted():
        subprocess.run(["umount", "--lazy", "--force", "/mnt/far"], check=False, capture_output=True)


def mounted() -> str:
    """What findmnt says is mounted."""
    argv = ["findmnt", "--noheadings", "--output", "FSTYPE,SOURCE,OPTIONS", "/mnt/far"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="session", autouse=True)
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
    unmount_all()
    assert list(Path("/mnt/far").iterdir()) == [], "nothing was written where the store was not"
    server(f"mount -o remount,rw {FAR}; rm -rf {FAR}/* {FAR}/.[!.]*")
    subprocess.run(["bash", "-euc", f"rm -rf {NEAR}/* {NEAR}/.[!.]*"], check=True)
    export(RW)


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
    """A night whose copy takes about 5 s."""
    site.night(number, {"same": "always", "number": str(number), "large": "x" * (5 << 20)})
    site.config.write_text(site.config.read_text().replace("--numeric-ids", "--numeric-ids --bwlimit=1m"))


def keep_as_stage_2_does(site: Site) -> None:
    """Prove the store before each thing that is done to it."""
    prove(site.far)
    site.sync()
    prove(site.far)
    site.rotate()


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
