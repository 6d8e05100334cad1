"""What runs in a guest of nfs_guest.py: replicas on a real NFSv4.2 mount, looked at where they lie, at the server."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tasks.drivers import replica_check, replicas
from tasks.drivers.chunks import CHUNK_BYTES
from tasks.drivers.permanent import PermanentPlace, prove
from tasks.drivers.replica_check import check
from tasks.errors import StoreSilent
from tests.lab.nfs_sites import FAR, cable
from tests.lab.test_replicas import DISK_CHUNKS, Vm, same


@pytest.fixture
def vm(place: PermanentPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vm:
    for module in (replicas, replica_check):
        monkeypatch.setattr(module, "AT_A_TIME", 2)
    prove(place)
    return Vm(tmp_path / "store")


def test_an_image_arrives_and_of_an_increment_the_server_shares_what_did_not_change(
    place: PermanentPlace, vm: Vm
) -> None:
    first = vm.image()
    replicas.replicate(place, first)
    assert same(first.folder, FAR / first.place)
    vm.write(2 * CHUNK_BYTES, 3000)
    second = vm.image()
    assert 0 < (replicas.replicate(place, second) or 0) < 2 * CHUNK_BYTES
    assert same(second.folder, FAR / second.place)
    argv = ["filefrag", "-v", str(FAR / second.place / "vda.raw")]
    assert "shared" in subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_a_cable_that_is_pulled_ends_the_turn_and_the_next_goes_on(place: PermanentPlace, vm: Vm) -> None:
    for number in range(DISK_CHUNKS):
        vm.write(number * CHUNK_BYTES, 500)
    original = vm.image()

    def pull(done: int, _total: int | None) -> None:
        if done >= 4 * CHUNK_BYTES:
            cable("down")

    with pytest.raises(StoreSilent):
        replicas.replicate(place, original, on_progress=pull)
    cable("up")
    prove(place)
    assert not (FAR / original.place).exists()
    assert 0 < (replicas.replicate(place, original) or 0) <= (DISK_CHUNKS - 2) * CHUNK_BYTES
    assert same(original.folder, FAR / original.place)


def test_damage_at_the_server_is_found_over_the_mount_and_healed(place: PermanentPlace, vm: Vm) -> None:
    original = vm.image()
    replicas.replicate(place, original)
    with (FAR / original.place / "vda.raw").open("r+b") as disk:
        disk.seek(5 * CHUNK_BYTES + 7)
        disk.write(b"x")
    subprocess.run(["sync"], check=True)
    replica = place.path / original.place
    assert check(place, "image", replica, None).left == ("vda.raw",)
    assert check(place, "image", replica, original.folder).healed == ("vda.raw",)
    assert same(original.folder, FAR / original.place)
