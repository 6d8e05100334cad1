"""What the NBD worker makes of an export, against a real qemu-nbd (of the KVM hosts' release)."""

import hashlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.drivers import nbd
from tasks.drivers.chunks import CHUNK_BYTES, read_chunks, verify_chunks
from tasks.errors import CommandFailed
from tests.lab.kvm_host import program

MIB = 1 << 20
SIZE = 5 * CHUNK_BYTES + 3 * MIB + 512
"""The last chunk is short, and so is its last piece."""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with data at the borders of chunks and of pieces, written zeros, and much that was never written."""
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(SIZE))
    write(path, 0x11, 0, 512)
    write(path, 0x22, CHUNK_BYTES - 4096, 8192)
    write(path, 0x33, 2 * CHUNK_BYTES, CHUNK_BYTES)
    write(path, 0x00, 3 * CHUNK_BYTES, MIB)
    write(path, 0x44, 5 * CHUNK_BYTES + 3 * MIB, 512)
    return path


def run(name: str, *words: str) -> None:
    subprocess.run([*program(name), *words], check=True, stdout=subprocess.DEVNULL)


def write(path: Path, pattern: int, offset: int, length: int) -> None:
    run("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {offset} {length}", str(path))


@contextmanager
def served(path: Path, *options: str) -> Iterator[Path]:
    socket = path.with_name("nbd.sock")
    options = ("--read-only", "--persistent", "--shared=8", f"--socket={socket}", *options)
    argv = [*program("qemu-nbd"), *options, str(path)]
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        while not socket.exists():
            assert server.poll() is None
            time.sleep(0.01)
        yield socket
    finally:
        server.terminate()
        server.wait()
        socket.unlink(missing_ok=True)


def pull(path: Path, target: Path, *, bitmap: str | None = None, parent_chunks: Path | None = None) -> int:
    options = [f"--bitmap={bitmap}"] if bitmap else []
    with served(path, "--format=qcow2", *options) as socket:
        return nbd.pull(
            socket,
            "",
            target,
            SIZE,
            bitmap=bitmap,
            chunks=target.with_suffix(".chunks"),
            parent_chunks=parent_chunks,
            deadline_s=60,
        )


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def assert_is(target: Path, disk: Path) -> None:
    """The copy is the disk, and its listing is what sha256 says of it."""
    run("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", str(target), str(disk))
    assert target.stat().st_size == SIZE
    content = target.read_bytes()
    expected = {}
    for number in range(-(-SIZE // CHUNK_BYTES)):
        chunk = content[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        if chunk.strip(b"\0"):
            expected[number] = hashlib.sha256(chunk).hexdigest()
    listing = read_chunks(target.with_suffix(".chunks"))
    assert listing == expected
    verify_chunks(target, listing)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "copy.raw"
    path.touch()
    return path


def test_a_full_copy_is_the_disk_and_stays_thin(disk: Path, target: Path) -> None:
    moved = pull(disk, target)
    assert_is(target, disk)
    # What travels is what the qcow2 file has of its own: clusters of 64 KiB.
    assert moved < 6 * MIB
    assert allocated(target) < 5 * MIB


def test_zeros_that_travel_are_not_written(disk: Path, target: Path) -> None:
    run("qemu-io", "-f", "qcow2", "-c", f"write -P 1 {4 * CHUNK_BYTES} 2M", str(disk))
    run("qemu-io", "-f", "qcow2", "-c", f"write -P 0 {4 * CHUNK_BYTES} 2M", str(disk))
    pull(disk, target)
    assert_is(target, disk)
    assert allocated(target) < 5 * MIB


def test_of_a_clone_only_what_is_dirty_travels(disk: Path, target: Path, tmp_path: Path) -> None:
    pull(disk, target)
    parent = target.with_suffix(".chunks").rename(tmp_path / "parent.chunks")
    run("qemu-img", "bitmap", "--add", str(disk), "since")
    write(disk, 0x55, CHUNK_BYTES + 128 * 1024, 64 * 1024)
    write(disk, 0x66, 4 * CHUNK_BYTES + MIB, 512)
    moved = pull(disk, target, bitmap="since", parent_chunks=parent)
    assert_is(target, disk)
    assert moved <= 128 * 1024


@pytest.mark.parametrize("command", ["write -P 0", "write -z", "discard"])
def test_what_became_zero_is_zero_in_the_clone_and_takes_no_room(
    disk: Path, target: Path, tmp_path: Path, command: str
) -> None:
    pull(disk, target)
    before = allocated(target)
    parent = target.with_suffix(".chunks").rename(tmp_path / "parent.chunks")
    run("qemu-img", "bitmap", "--add", str(disk), "since")
    run("qemu-io", "-d", "unmap", "-f", "qcow2", "-c", f"{command} {2 * CHUNK_BYTES} {CHUNK_BYTES}", str(disk))
    pull(disk, target, bitmap="since", parent_chunks=parent)
    assert_is(target, disk)
    assert 2 not in read_chunks(target.with_suffix(".chunks"))
    assert allocated(target) <= before - CHUNK_BYTES


def test_a_clone_of_which_nothing_is_dirty_stays_as_it_is(disk: Path, target: Path, tmp_path: Path) -> None:
    pull(disk, target)
    parent = target.with_suffix(".chunks").rename(tmp_path / "parent.chunks")
    run("qemu-img", "bitmap", "--add", str(disk), "since")
    assert pull(disk, target, bitmap="since", parent_chunks=parent) == 0
    assert_is(target, disk)


def test_an_export_of_another_size_is_refused(disk: Path, target: Path) -> None:
    run("qemu-img", "resize", "-q", "-f", "qcow2", str(disk), str(SIZE + MIB))
    with pytest.raises(CommandFailed, match=f"{SIZE + MIB} bytes, not {SIZE}"):
        pull(disk, target)


def test_a_bitmap_that_is_not_served_is_refused(disk: Path, target: Path) -> None:
    chunks = target.with_suffix(".chunks")
    with served(disk, "--format=qcow2") as socket, pytest.raises(CommandFailed, match="qemu:dirty-bitmap:since"):
        nbd.pull(socket, "", target, SIZE, bitmap="since", chunks=chunks, parent_chunks=None, deadline_s=60)
    assert not chunks.exists()


def test_a_server_that_is_not_there_breaks_the_copy(disk: Path, target: Path) -> None:
    with pytest.raises(CommandFailed):
        nbd.pull(
            disk.with_name("nowhere.sock"), "", target, SIZE,
            bitmap=None, chunks=target.with_suffix(".chunks"), parent_chunks=None, deadline_s=60,
        )  # fmt: skip
