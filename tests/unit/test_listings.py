"""Files through the nights: what the listings say is what find(1) and cmp(1) would."""

from __future__ import annotations

import fnmatch
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.drivers.digest import read_below, sha256_file, write_listing
from tasks.drivers.listings import ListedNight, compare, lines_of, search
from tasks.errors import IntegrityError
from tasks.model.file_history import Found, Version, differences, histories
from tasks.model.name_pattern import NamePattern
from tests.unit.records import NIGHT, night_manifest

ODD = ["new\nline", "back\\slash", "\udcff", "-rf", "a*b", "esc\x1b[31m", "[x]"]


@pytest.fixture
def night(tmp_path: Path):
    """Make a night with these files."""

    def make(number: int, files: dict[str, str]) -> ListedNight:
        folder = tmp_path / str(number)
        (folder / "data").mkdir(parents=True)
        for name, text in files.items():
            path = folder / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        write_listing(folder / "data", folder / "SHA256SUMS", None, None)
        sums = sha256_file(folder / "SHA256SUMS")
        return ListedNight(folder, night_manifest(NIGHT + timedelta(days=number), listing_sha256=sums))

    return make


def test_file_is_followed_through_its_versions_and_its_end(night) -> None:
    nights = [night(1, {"etc/a": "1"}), night(2, {"etc/a": "22", "b": "x"}), night(3, {"etc/a": "22"}), night(4, {})]
    ids = [one.manifest.id for one in nights]
    found = search(nights, NamePattern("etc/a"))
    (row,) = histories(ids, found)
    assert (row.path, row.deleted) == ("/etc/a", ids[3])
    assert [(one.size_bytes, one.nights) for one in row.versions] == [(1, (ids[0],)), (2, (ids[1], ids[2]))]
    (gone,) = histories(ids, search(nights, NamePattern("b")))
    assert (gone.versions[0].nights, gone.deleted) == ((ids[1],), ids[2])


def test_file_that_came_back_after_a_gap_has_two_versions() -> None:
    (row,) = histories(["1", "2", "3"], {"1": {"/a": Found("x", 1)}, "3": {"/a": Found("x", 1)}})
    assert [version.nights for version in row.versions] == [("1",), ("3",)]
    assert row.deleted is None


@pytest.mark.parametrize("name", ODD)
def test_hostile_names_are_found_whole_and_by_a_part(night, name: str) -> None:
    one = night(1, {**{f"dir/{odd}": "x" for odd in ODD}, "zzz": "y"})
    wild = any(char in name for char in "*?[")
    found = search([one], NamePattern(name if not wild else f"*{name[:1].replace('[', '[[]')}*"))
    assert f"/dir/{name}" in found[one.manifest.id]
    assert "/zzz" not in found[one.manifest.id]


@settings(max_examples=200, deadline=None)
@given(st.text("ab/*?[]!.", min_size=1, max_size=8), st.text("ab/.", min_size=1, max_size=8))
def test_wildcards_are_fnmatch_s_and_the_literal_never_misses(pattern: str, path: str) -> None:
    wanted, path = NamePattern(pattern), path.strip("/")
    if not wanted.wild:
        assert wanted.matches(path.encode()) == (pattern in f"/{path}")
    else:
        subject = f"/{path}" if "/" in pattern else path.rpartition("/")[2]
        assert wanted.matches(path.encode()) == fnmatch.fnmatchcase(subject, pattern)
    if wanted.matches(path.encode()):
        assert all(literal in path.encode() for literal in wanted.literals)


def test_listing_that_is_damaged_is_an_error(night) -> None:
    one = night(1, {"a": "1"})
    (one.folder / "SHA256SUMS").write_bytes(b"no sum  a\n")
    with pytest.raises(IntegrityError):
        search([one], NamePattern("a"))
    with pytest.raises(IntegrityError):
        compare(one, night(2, {}))


def test_nights_differ_in_what_was_added_removed_and_changed_below_a_path(night) -> None:
    old = night(1, {"etc/same": "s", "etc/gone": "gone", "etc/new": "n", "etcetera": "x"})
    new = night(2, {"etc/same": "s", "etc/new": "newer", "etc/came": "came!", "etcetera": "y"})
    found = [(row.change, row.path, row.old_bytes, row.new_bytes) for row in compare(old, new, "/etc/")]
    assert found == [
        ("added", "/etc/came", None, 5),
        ("removed", "/etc/gone", 4, None),
        ("changed", "/etc/new", 1, 5),
    ]
    assert len(compare(old, new)) == 4


def test_night_of_which_only_the_listing_is_there_has_no_sizes(night) -> None:
    one = night(1, {"a": "1"})
    shutil.rmtree(one.folder / "data")
    assert search([one], NamePattern("a"))[one.manifest.id]["/a"].size_bytes is None
    assert [*lines_of(one.folder / "SHA256SUMS", ["/a", "/b"])] == [b"a"]


def test_reading_a_file_follows_no_link_and_waits_for_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").write_text("s")
    (tmp_path / "data/up").symlink_to("..")
    (tmp_path / "data/link").symlink_to("../secret")
    os.mkfifo(tmp_path / "data/pipe")
    for name in ("up/secret", "link", "pipe", "none", "../secret"):
        assert read_below(tmp_path / "data", name, 10) is None, name


def test_a_night_that_could_not_see_a_path_says_nothing_of_it() -> None:
    found = {"1": {"/srv/a": Found("x", 1)}, "2": {}, "3": {"/srv/a": Found("x", 1)}, "4": {}}
    hidden = {"2": ("/srv",), "4": ("/srv",)}
    (row,) = histories([*found], found, hidden)
    assert (row.versions, row.deleted) == ((Version("x", 1, ("1", "3")),), None)
    (other,) = histories(["1", "2"], {"1": {"/srvs": Found("x", 1)}, "2": {}}, hidden)
    assert other.deleted == "2"


def test_what_one_side_could_not_see_is_no_difference() -> None:
    old, new = {"/srv/a": Found("x", 1), "/b": Found("x", 1)}, {"/srv/c": Found("y", 1)}
    assert [row.path for row in differences(old, new, ("/srv",))] == ["/b"]
