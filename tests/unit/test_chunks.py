"""Chunk listings: what they say is what dd and sha256sum say, and any change of the file is found."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tasks.drivers.chunks import CHUNK_BYTES, digest_of, read_chunks, verify_chunks, write_chunks
from tasks.errors import IntegrityError

SIZE = 5 * CHUNK_BYTES + 12345


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Chunk 0 has data, 1 is a hole, 2 is written zeros, 3 has one byte, 4 is a hole, 5 is short."""
    path = tmp_path / "vda.raw"
    with path.open("wb") as out:
        out.truncate(SIZE)
        for offset, data in ((100, b"boot"), (2 * CHUNK_BYTES, bytes(4096)), (4 * CHUNK_BYTES - 1, b"x")):
            os.pwrite(out.fileno(), data, offset)
        os.pwrite(out.fileno(), b"end", SIZE - 3)
    return path


def digests(path: Path) -> dict[int, str]:
    content = path.read_bytes()
    parts = [content[place : place + CHUNK_BYTES] for place in range(0, len(content), CHUNK_BYTES)]
    return {number: digest for number, part in enumerate(parts) if (digest := digest_of(part)) is not None}


def test_listing_is_written_read_and_agrees_with_sha256sum(file: Path, tmp_path: Path) -> None:
    listing = tmp_path / "vda.raw.chunks"
    write_chunks(listing, digests(file))
    assert sorted(read_chunks(listing)) == [0, 3, 5]
    for number, digest in read_chunks(listing).items():
        script = f"dd if={file} bs=4M skip={number} count=1 status=none | sha256sum"
        found = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
        assert found.split()[0] == digest
    read: list[int] = []
    verify_chunks(file, read_chunks(listing), read.append)
    assert sum(read) < SIZE, "holes are not read"


@pytest.mark.parametrize("offset", [0, 100, CHUNK_BYTES, 2 * CHUNK_BYTES, 4 * CHUNK_BYTES + 7, SIZE - 1])
def test_one_changed_byte_is_found(file: Path, offset: int) -> None:
    known = digests(file)
    with file.open("r+b") as out:
        (before,) = os.pread(out.fileno(), 1, offset)
        os.pwrite(out.fileno(), bytes([before ^ 1]), offset)
    with pytest.raises(IntegrityError, match=f"chunk {offset // CHUNK_BYTES} of"):
        verify_chunks(file, known)


def _first_damage(path: Path, known: dict[int, str]) -> str:
    try:
        verify_chunks(path, known, percent=34)
    except IntegrityError as exc:
        return "chunk 0" if ", chunk 0 of" in str(exc) else str(exc)
    return ""


def test_sample_reads_a_part_and_another_one_each_time(file: Path) -> None:
    known, read = digests(file), list[int]()
    verify_chunks(file, known, read.append, percent=34)
    assert len(read) == 1, "one of three"
    with file.open("r+b") as out:
        out.write(b"damaged")
    assert {_first_damage(file, known) for _ in range(60)} == {"", "chunk 0"}


def test_data_that_became_a_hole_is_found(file: Path) -> None:
    known = digests(file)
    subprocess.run(["fallocate", "--punch-hole", "-o", "0", "-l", "4096", str(file)], check=True)
    with pytest.raises(IntegrityError, match="chunk 0 of"):
        verify_chunks(file, known)


@pytest.mark.parametrize(
    "line", ["", "x", "0" * 64, f"{'0' * 64}  -1", f"{'0' * 63}g  1", f"{'0' * 64}  1\n{'1' * 64}  1"]
)
def test_listing_that_makes_no_sense_is_damage(tmp_path: Path, line: str) -> None:
    listing = tmp_path / "listing"
    listing.write_text(line + "\n")
    with pytest.raises(IntegrityError):
        read_chunks(listing)
