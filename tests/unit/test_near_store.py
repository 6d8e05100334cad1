"""The near store is proven by its marker; only a place without data is made one."""

from pathlib import Path

import pytest

from tasks.drivers import near_store
from tasks.errors import StoreNotMounted


@pytest.mark.parametrize("made", [(), ("lost+found",), (".gbs-store",)], ids=["missing", "by mkfs", "by store create"])
def test_place_without_data_is_made_a_store(tmp_path: Path, made: tuple[str, ...]) -> None:
    root = tmp_path / "srv/gbs"
    for name in made:
        (root / name).mkdir(parents=True)
    near_store.begin(root)
    assert near_store.proven(root).root == root
    assert root.stat().st_mode & 0o077 == 0 or made


def test_mount_point_without_its_file_system_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreNotMounted) as found:
        near_store.proven(tmp_path)
    assert str(found.value) == (
        f"store {tmp_path} is not the right one: the marker .gbs-near-store is missing; nothing was written; "
        f"mount it; if this is the right place: touch {tmp_path}/.gbs-near-store"
    )


def test_place_with_data_of_others_is_not_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(StoreNotMounted):
        near_store.begin(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
