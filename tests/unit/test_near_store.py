"""The near store is proven by its marker."""

from pathlib import Path

import pytest

from tasks.drivers import near_store
from tasks.errors import StoreNotMounted


def test_store_with_its_marker_is_proven(tmp_path: Path) -> None:
    (tmp_path / near_store.MARKER).touch()
    assert near_store.proven(tmp_path).root == tmp_path


@pytest.mark.parametrize("made", [(), ("lost+found",), (".gbs-store",)], ids=["empty", "new", "the permanent store"])
def test_another_place_is_told_with_what_to_do(tmp_path: Path, made: tuple[str, ...]) -> None:
    for name in made:
        (tmp_path / name).touch()
    with pytest.raises(StoreNotMounted) as found:
        near_store.proven(tmp_path)
    assert str(found.value) == (
        f"store {tmp_path} is not the right one: the marker .gbs-near-store is missing; nothing was written; "
        f"mount it; if this is the right place: touch {tmp_path}/.gbs-near-store"
    )


def test_store_whose_folder_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreNotMounted):
        near_store.proven(tmp_path / "srv/gbs")
