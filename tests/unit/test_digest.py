"""Listings: what sha256sum(1) itself says of them, and what verifying finds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tasks.drivers.digest import (
    listing_line,
    parse_listing_line,
    record,
    sha256_file,
    verify_listing,
    verify_record,
    write_listing,
)
from tasks.errors import IntegrityError, StoreError
from tasks.model.manifest import FileRecord

NAMES = st.binary(min_size=1, max_size=30).map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"_"))
HOSTILE = [b"\\", b"\n", b"\r", b"a\\nb", b"\xff\xfe", b" a", b"*a", b"-rf", b"a\r\n\\", b"\\\n", b"  ", b"a  b", b"-"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "a").write_bytes(b"alpha")
    (root / "sub" / "b").write_bytes(b"x" * 3_000_000)
    (root / "empty").touch()
    return root


def sha256sum_agrees(root: Path, listing: Path) -> bool:
    argv = ["sha256sum", "--check", "--strict", "--quiet", str(listing.resolve())]
    return subprocess.run(argv, cwd=root, capture_output=True, check=False).returncode == 0


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(NAMES.filter(lambda name: name not in (b".", b"..")), min_size=1, max_size=8))
@example(set(HOSTILE))
def test_sha256sum_checks_our_listing_whatever_files_are_called(
    tmp_path_factory: pytest.TempPathFactory, names: set[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("names")
    root, listing = folder / "root", folder / "SUMS"
    root.mkdir()
    for name in names:
        with open(os.path.join(os.fsencode(root), name), "wb") as file:
            file.write(b"of " + name)
    assert write_listing(root, listing, None, None)[0] == len(names)
    assert sha256sum_agrees(root, listing)
    verify_listing(root, listing)
    with listing.open("rb") as lines:
        assert {path for _, path in map(parse_listing_line, lines)} == names


@settings(max_examples=60, deadline=None)
@given(NAMES)
@example(b"\\\\n")
def test_line_is_read_back_as_it_was_written(name: bytes) -> None:
    line = listing_line("0" * 64, name)
    assert line.count(b"\n") == 1
    assert parse_listing_line(line) == ("0" * 64, name)


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"0" * 64 + b" a\n", b"0" * 63 + b"  a\n", b"x" * 64 + b"  a\n", b"0" * 64 + b"  cut"]
)
def test_line_that_is_damaged_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a line of sha256sum"):
        parse_listing_line(line)


def test_listing_counts_regular_files_alone(tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    (tree / "link").symlink_to("/etc/passwd")
    (tree / "dir-link").symlink_to("/etc")
    assert write_listing(tree, tree.parent / "SUMS", None, None)[:2] == (3, 3_000_005)
    assert b"link" not in (tree.parent / "SUMS").read_bytes()


def test_listing_reuses_the_hash_of_the_same_inode_alone(tree: Path) -> None:
    listing, old = tree.parent / "SUMS", tree.parent / "old"
    old.mkdir()
    os.link(tree / "a", old / "a")
    (old / "empty").touch()
    previous = tree.parent / "OLD"
    previous.write_bytes(
        listing_line("1" * 64, b"a") + listing_line("2" * 64, b"empty") + listing_line("3" * 64, b"gone")
    )
    with (tree / "sub/b").open("wb") as sparse:
        sparse.truncate(1 << 26)
        sparse.write(b"x" * 4096)
    listed = write_listing(tree, listing, old, previous)
    assert (listed.new_bytes, listed.new_inodes) == (4096, 2 + 2), "a hole takes nothing; two files and two folders"
    assert listed.fresh == [b"empty", b"sub/b"]
    with listing.open("rb") as lines:
        hashes = {path: sha for sha, path in map(parse_listing_line, lines)}
    assert hashes[b"a"] == "1" * 64
    assert hashes[b"empty"] == sha256_file(tree / "empty")
    assert set(hashes) == {b"a", b"empty", b"sub/b"}


def test_damaged_listing_of_last_night_is_not_a_reason_to_fail_tonight(tree: Path) -> None:
    previous = tree.parent / "OLD"
    previous.write_bytes(b"\xff garbage")
    write_listing(tree, tree.parent / "SUMS", tree, previous)
    assert sha256sum_agrees(tree, tree.parent / "SUMS")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def become_a_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


@pytest.mark.parametrize("damage", [flip_a_bit, shorten, Path.unlink, become_a_link])
def test_verify_finds_damage_and_names_the_file(tree: Path, damage) -> None:
    listing = tree.parent / "SUMS"
    write_listing(tree, listing, None, None)
    verify_listing(tree, listing)
    damage(tree / "sub" / "b")
    with pytest.raises(IntegrityError, match="sub/b is damaged"):
        verify_listing(tree, listing)


def test_verify_tells_its_progress(tree: Path) -> None:
    listing, seen = tree.parent / "SUMS", list[int]()
    write_listing(tree, listing, None, None)
    verify_listing(tree, listing, seen.append)
    assert seen[-1] == 3_000_005
    assert seen == sorted(seen)


def test_verify_with_a_damaged_listing_is_an_integrity_error(tree: Path) -> None:
    listing = tree.parent / "SUMS"
    write_listing(tree, listing, None, None)
    shorten(listing)
    with pytest.raises(IntegrityError, match="SUMS"):
        verify_listing(tree, listing)


def test_sha256_file_does_not_follow_a_link(tree: Path) -> None:
    (tree / "link").symlink_to("a")
    with pytest.raises(OSError, match="symbolic"):
        sha256_file(tree / "link")


def test_record_is_what_sha256sum_says(tree: Path) -> None:
    made, sizes = record(tree / "sub" / "b", tree), list[int]()
    output = subprocess.run(["sha256sum", tree / "sub" / "b"], capture_output=True, check=True, text=True).stdout
    assert (made.path, made.size_bytes, made.sha256) == ("sub/b", 3_000_000, output.split()[0])
    sha256_file(tree / "sub" / "b", sizes.append)
    assert sum(sizes) == 3_000_000


def test_file_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    file = FileRecord(path="mem", size_bytes=0, sha256="0" * 64)
    with pytest.raises(StoreError, match="store /proc/self/mem: cannot be read: Input/output error"):
        verify_record(Path("/proc/self"), file)
    (listing := tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  mem\n")
    with pytest.raises(StoreError, match="store /proc/self/mem: cannot be read: Input/output error"):
        verify_listing(Path("/proc/self"), listing)
