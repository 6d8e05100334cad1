"""What looks like chance: told by bytes that real tools made, of every length that is looked at."""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.model.entropy import LEAST, PIECE, bits, compressed, plain, random_looking, scrambled

TEXT = Path(__file__).read_bytes() * 4
PLAIN = {
    "text": TEXT,
    "base64": base64.b64encode(random.Random(1).randbytes(PIECE)),
    "json": json.dumps([{"id": number, "name": f"n{number}"} for number in range(400)]).encode(),
    "zeros": bytes(PIECE),
    "program": Path(os.path.realpath(sys.executable)).read_bytes()[1 << 20 :],
}


@given(st.integers(LEAST, PIECE), st.integers(0, 1 << 30))
def test_uniform_bytes_look_like_chance_whatever_their_number(size: int, seed: int) -> None:
    piece = random.Random(seed).randbytes(size)
    assert abs(bits(piece) - 8) < 6 * 33 / size
    assert not plain(piece)


def test_encrypted_text_looks_like_chance() -> None:
    """openssl is the outside tool here: 1,000 pieces of what it encrypted."""
    argv = ["openssl", "enc", "-aes-256-ctr", "-pbkdf2", "-k", "key", "-nosalt"]
    text = TEXT * (1000 * 1000 // len(TEXT))
    content = subprocess.run(argv, input=text, capture_output=True, check=True).stdout
    pieces = [content[place : place + 1000] for place in range(0, len(content) - 1000, 1000)]
    assert sum(map(random_looking, pieces)) >= len(pieces) - 1


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("size", [LEAST, 1000, PIECE])
def test_plain_bytes_are_plain_and_no_chance(kind: str, size: int) -> None:
    piece = PLAIN[kind][:size]
    assert plain(piece), bits(piece)
    assert not random_looking(piece)


@given(st.binary(max_size=LEAST - 1))
def test_few_bytes_say_nothing(piece: bytes) -> None:
    assert not plain(piece)
    assert not random_looking(piece)


@given(st.binary(min_size=2, max_size=600))
def test_nothing_is_both_plain_and_chance(piece: bytes) -> None:
    assert not (plain(piece) and random_looking(piece))
    assert bits(piece) <= 8 + 8


def test_file_is_scrambled_when_any_of_its_pieces_is() -> None:
    chance = random.Random(3).randbytes(PIECE)
    text = TEXT[:PIECE]
    assert scrambled([text], [chance])
    assert scrambled([text, text, text], [text, chance, text])
    assert not scrambled([text, chance], [text[::-1], chance[::-1]])
    assert not scrambled([chance], [text])
    assert not scrambled([], [chance])


@pytest.mark.parametrize("tool", ["gzip", "bzip2", "xz", "zstd"])
def test_what_a_compressor_makes_is_known_by_its_name_and_its_beginning(tmp_path: Path, tool: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(TEXT)
    argv = [tool, "-q", "--rm", str(log)] if tool == "zstd" else [tool, str(log)]
    subprocess.run(argv, check=True, capture_output=True)
    (made,) = tmp_path.iterdir()
    assert compressed(os.fsencode(made.name), made.read_bytes())
    assert not compressed(b"log", made.read_bytes())
    assert not compressed(os.fsencode(made.name), random.Random(5).randbytes(PIECE))


def test_compressed_content_is_not_plain() -> None:
    assert not plain(gzip.compress(PLAIN["program"])[:PIECE])
