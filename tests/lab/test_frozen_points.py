"""The far end's recipe: read-only btrfs snapshots of a permanent store, which nobody in it can change or remove."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.snapshot_client import SnapshotClient
from tests.lab.sshd import make_key

RECIPE = str(Path(__file__).parents[2] / "docs/recipes/freeze-points")
STORE, FROZEN = "/srv/gbs", "/srv/frozen"


@pytest.fixture
def far(lab_folder: Path) -> Iterator[SnapshotClient]:
    """A machine with a permanent store of one restore point on btrfs."""
    system = SnapshotClient("far1", lab_folder / "far1", make_key(lab_folder / "id_far1", "far"))
    system.start()
    system.run(["btrfs", "subvolume", "create", STORE])
    make = f"cd {STORE}; echo far-1 >.gbs-store; mkdir -p web1/daily.0/data; echo one >web1/daily.0/data/page"
    system.run(["sh", "-euc", f"{make}; cd web1/daily.0/data; sha256sum page >../SHA256SUMS"])
    yield system
    system.remove()


def freeze(far: SnapshotClient, keep: int = 2, days: int = 30, store: str = STORE, frozen: str = FROZEN) -> str:
    """What the recipe complained of; a snapshot's name is of its second."""
    time.sleep(1)
    return far.run([RECIPE, store, frozen, str(keep), str(days)], check=False).stderr


def snapshots(far: SnapshotClient) -> list[str]:
    return far.run(["ls", FROZEN]).stdout.split()


def test_snapshot_outlives_whatever_is_done_to_the_store(far: SnapshotClient) -> None:
    assert freeze(far) == ""
    (name,) = snapshots(far)
    far.run(["sh", "-c", f"echo ENCRYPTED >{STORE}/web1/daily.0/data/page; rm -rf {STORE}/web1"])
    point = f"{FROZEN}/{name}/web1/daily.0"
    far.run(["sh", "-euc", f"cd {point}/data && sha256sum --check --strict ../SHA256SUMS"])
    for attempt in (f"rm -rf {point}", f"echo x >{point}/data/page", f"chmod 0 {point}", f"mv {point} {point}.old"):
        ended = far.run(["sh", "-c", attempt], check=False)
        assert ended.returncode != 0, attempt
        assert "Read-only file system" in ended.stderr
    far.run(["sh", "-euc", f"cp -a {point} {STORE}/ && cd {STORE}/daily.0/data && sha256sum --check ../SHA256SUMS"])


def test_old_snapshots_go_and_the_newest_stay_whatever_the_clock_says(far: SnapshotClient) -> None:
    freeze(far)
    for name in ("20200101T000000Z", "20200102T000000Z", "29990101T000000Z"):
        far.run(["btrfs", "subvolume", "snapshot", "-r", STORE, f"{FROZEN}/{name}"])
    far.run(["mkdir", f"{FROZEN}/of somebody else's"])
    (today,) = [name for name in snapshots(far) if name.startswith("2") and name[:4] not in ("2020", "2999")]
    freeze(far, keep=4)
    assert "20200102T000000Z" in snapshots(far)
    assert "20200101T000000Z" not in snapshots(far)
    freeze(far, keep=1, days=30)
    left = far.run(["find", FROZEN, "-mindepth", "1", "-maxdepth", "1", "-printf", "%f\\n"]).stdout.splitlines()
    assert {today, "29990101T000000Z", "of somebody else's"} <= set(left)
    assert not [name for name in left if name.startswith("2020")]


def test_wrong_places_are_refused_and_nothing_is_made(far: SnapshotClient) -> None:
    before = far.subvolumes()
    assert "where it can be reached" in freeze(far, frozen=f"{STORE}/web1/frozen")
    assert "at least one snapshot must stay" in freeze(far, keep=0)
    far.run(["rm", f"{STORE}/.gbs-store"])
    assert "has no marker" in freeze(far)
    assert far.subvolumes() == before
