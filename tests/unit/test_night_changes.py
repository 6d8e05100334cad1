"""What differs between two nights: the figures are those that a plain comparison of the trees gives."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.drivers.digest import listing_line, sha256_file
from tasks.drivers.night_changes import Folder, compare
from tasks.model.manifest import LISTING, NightManifest
from tests.unit.records import night_manifest

NAMES = st.sampled_from(
    [b"a", b"a.locked", b"b", b"new\nline", b"back\\slash", b"\xff", b"-", b"d/a", b"d/b", b"d/b.1"]
)
TREES = st.dictionaries(NAMES, st.sampled_from(["", "one", "two", "three"]))


def listed(folder: Path, tree: dict[bytes, str], number: int) -> NightManifest:
    """Only the listing of a tree; its files are not there, which must do no harm."""
    (folder / "data").mkdir(parents=True)
    lines = [listing_line(hashlib.sha256(tree[path].encode()).hexdigest(), path) for path in sorted(tree)]
    (folder / LISTING).write_bytes(b"".join(lines))
    sums = sha256_file(folder / LISTING)
    return night_manifest(id=f"2026110{number}T020000Z", files=len(tree), listing_sha256=sums)


@settings(max_examples=150, deadline=None)
@given(TREES, TREES)
def test_figures_are_those_of_the_trees(old: dict[bytes, str], new: dict[bytes, str]) -> None:
    with TemporaryDirectory() as scratch:
        before, after = Path(scratch) / "before", Path(scratch) / "after"
        found = compare(Folder(before), listed(before, old, 1), after, listed(after, new, 2))
    gone = Counter(content for path, content in old.items() if path not in new)
    came = Counter(content for path, content in new.items() if path not in old)
    assert found.changed == sum(new[path] != content for path, content in old.items() if path in new)
    assert found.moved == (gone & came).total()
    assert (found.deleted, found.new) == ((gone - came).total(), (came - gone).total())
    assert found.files - found.files_before == found.new - found.deleted
    assert (found.against, found.night, found.scrambled) == ("20261101T020000Z", "20261102T020000Z", 0)
