"""The store: only what is complete is ever seen, and nothing published is changed."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from pathlib import Path

import pytest

from tasks.drivers import store as driver
from tasks.drivers.digest import record, sha256_file, write_listing
from tasks.drivers.store import (
    Store,
    discard,
    publish,
    read_model,
    replace,
    verify_image,
    verify_night,
    write_model,
)
from tasks.errors import IntegrityError, StoreError
from tasks.model.manifest import DiskRecord, FileRecord, ImageManifest, NightManifest
from tests.unit.records import NIGHT, ZEROS, image_manifest, night_manifest


def folder(path: Path, content: str, *, manifest: bool = True) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    if manifest:
        write_model(path / "manifest.json", night_manifest())
    return path


def test_publish_without_manifest_is_refused(tmp_path: Path) -> None:
    partial = folder(tmp_path / "p", "new", manifest=False)
    with pytest.raises(StoreError, match="no manifest"):
        publish(partial, tmp_path / "final")
    assert not (tmp_path / "final").exists()


def test_publish_never_replaces(tmp_path: Path) -> None:
    partial, final = folder(tmp_path / "p", "new"), folder(tmp_path / "final", "old")
    with pytest.raises(StoreError, match="exists already"):
        publish(partial, final)
    assert (final / "file").read_text() == "old"
    assert (partial / "file").read_text() == "new"


def test_publish_makes_it_visible_whole(tmp_path: Path) -> None:
    publish(folder(tmp_path / "p", "new"), tmp_path / "deep" / "final")
    assert (tmp_path / "deep" / "final" / "file").read_text() == "new"
    assert not (tmp_path / "p").exists()


def test_replace_swaps_and_keeps_the_old_tree_complete(tmp_path: Path) -> None:
    partial, final = folder(tmp_path / "p", "new"), folder(tmp_path / "final", "old")
    replace(partial, final)
    assert (final / "file").read_text() == "new"
    assert {path.name for path in partial.iterdir()} == {"file", "manifest.json"}
    assert (partial / "file").read_text() == "old"


def test_replace_without_manifest_is_refused(tmp_path: Path) -> None:
    """Only the very first night was asked for a manifest; later ones went over a good one without."""
    partial, final = folder(tmp_path / "p", "new", manifest=False), folder(tmp_path / "final", "old")
    with pytest.raises(StoreError, match="no manifest"):
        replace(partial, final)
    assert (final / "file").read_text() == "old"


def test_replace_where_nothing_is_publishes(tmp_path: Path) -> None:
    replace(folder(tmp_path / "p", "new"), tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "new"


class WithoutExchange:
    """A C library on a file system that cannot exchange names (NFS)."""

    def __init__(self, code: int) -> None:
        self.code = code

    def renameat2(self, *_: object) -> int:
        ctypes.set_errno(self.code)
        return -1

    def syncfs(self, _: int) -> int:
        return 0


def test_replace_without_exchange_still_keeps_the_old_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_libc", WithoutExchange(errno.EINVAL))
    partial, final = folder(tmp_path / "p", "new"), folder(tmp_path / "final", "old")
    replace(partial, final)
    assert (final / "file").read_text() == "new"
    assert (partial / "file").read_text() == "old"


def test_replace_that_is_denied_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_libc", WithoutExchange(errno.EACCES))
    partial, final = folder(tmp_path / "p", "new"), folder(tmp_path / "final", "old")
    with pytest.raises(StoreError, match="Permission denied"):
        replace(partial, final)
    assert (final / "file").read_text() == "old"
    assert (partial / "file").read_text() == "new"


def test_read_model_of_nothing_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_model(tmp_path / "manifest.json", NightManifest) is None
    assert read_model(tmp_path / "file" / "manifest.json", NightManifest) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"kind": "image"}', b"null", b"\0" * 100])
def test_read_model_of_damage_is_an_integrity_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"manifest\.json is damaged: expected a NightManifest"):
        read_model(path, NightManifest)


def test_write_model_that_fails_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    write_model(path, night_manifest(client="old"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_model(path, night_manifest(client="new"))
    found = read_model(path, NightManifest)
    assert found is not None
    assert found.client == "old"


def image(path: Path) -> ImageManifest:
    path.mkdir(parents=True)
    (path / "vda.raw").write_bytes(b"disk" * 1000)
    (path / "domain.xml").write_text("<domain/>")
    files = tuple(record(file, path) for file in sorted(path.iterdir()))
    disk = DiskRecord(target="vda", file="vda.raw", format="raw", source="/x", virtual_size_bytes=4000)
    return image_manifest(disks=(disk,), files=files)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 0x10
    path.write_bytes(content)


def link_elsewhere(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def grow(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


def add_another(path: Path) -> None:
    path.with_name("vda.raw.more").touch()


@pytest.mark.parametrize(
    "damage", [flip, grow, link_elsewhere, add_another, Path.unlink, lambda path: os.truncate(path, 3)]
)
def test_verify_image_finds_damage(tmp_path: Path, damage) -> None:
    manifest = image(tmp_path / "i")
    verify_image(tmp_path / "i", manifest)
    damage(tmp_path / "i" / "vda.raw")
    with pytest.raises(IntegrityError, match=r"vda\.raw"):
        verify_image(tmp_path / "i", manifest)


def night(path: Path) -> NightManifest:
    (path / "data").mkdir(parents=True)
    (path / "data" / "etc").write_text("x")
    write_listing(path / "data", path / "SHA256SUMS", None, None)
    (path / "facts.json").write_text("{}")
    made = night_manifest(
        listing_sha256=sha256_file(path / "SHA256SUMS"), facts_sha256=hashlib.sha256(b"{}").hexdigest()
    )
    write_model(path / "manifest.json", made)
    return made


@pytest.mark.parametrize("name", ["SHA256SUMS", "facts.json"])
@pytest.mark.parametrize("damage", [Path.unlink, grow])
def test_verify_night_finds_damage(tmp_path: Path, name: str, damage) -> None:
    manifest = night(tmp_path / "n")
    verify_night(tmp_path / "n", manifest)
    damage(tmp_path / "n" / name)
    with pytest.raises(IntegrityError, match=name):
        verify_night(tmp_path / "n", manifest)


def test_listing_of_last_night_is_used_only_when_it_is_what_its_manifest_says(tmp_path: Path) -> None:
    """A bit that flipped in the listing was carried on from night to night, blessed by each new manifest."""
    store = Store(tmp_path)
    assert store.listing_of("web1") is None
    night(store.overnight("web1"))
    assert store.listing_of("web1") == store.overnight("web1") / "SHA256SUMS"
    flip(store.overnight("web1") / "SHA256SUMS")
    assert store.listing_of("web1") is None


def test_discard_removes_by_way_of_the_trash(tmp_path: Path) -> None:
    doomed = folder(tmp_path / "d", "x")
    discard(doomed, tmp_path / "trash", "d")
    assert not doomed.exists()
    assert list((tmp_path / "trash").iterdir()) == []
    discard(doomed, tmp_path / "trash", "d")


def test_discard_does_not_follow_links(tmp_path: Path) -> None:
    kept = folder(tmp_path / "kept", "x")
    doomed = folder(tmp_path / "d", "x")
    (doomed / "link").symlink_to(kept)
    discard(doomed, tmp_path / "trash", "d")
    assert (kept / "file").exists()


@pytest.mark.parametrize("other", ["web1.aborted", ".web1.aborted", "web1", "Web1"])
def test_names_of_clients_never_meet_in_the_store(tmp_path: Path, other: str) -> None:
    """What was left of a pull of `web1` was removed by the next pull of the client `web1.aborted`."""
    store = Store(tmp_path)
    mine = {store.staging("web1"), store.aborted("web1"), store.overnight("web1")}
    theirs = {store.staging(other), store.aborted(other), store.overnight(other)}
    assert not mine & theirs or other == "web1"
    assert len(mine) == 3


@pytest.mark.parametrize("name", ["../../etc", "/etc", "..", ".", "", ".partial", "a/b", "a\0b"])
def test_every_path_of_a_hostile_name_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    for path, above in [
        (store.overnight(name), "overnight"),
        (store.staging(name), "overnight/.partial"),
        (store.aborted(name), "overnight/.partial"),
        (store.prepared(name), "prepared"),
        (store.images(name, name).parent, "images"),
        (store.recovery(name), "recovery"),
        (store.lock("client", name), "locks"),
    ]:
        assert path.parent == tmp_path / above


def test_images_are_those_of_the_vm_newest_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for host, vm, number in [
        ("kvm1", "web1", "1"),
        ("kvm2", "web1", "3"),
        ("kvm1", "web1", "2"),
        ("kvm1", "Web1", "9"),
    ]:
        made = image_manifest(id=f"2026010{number}T000000Z", vm=vm, kvm_host=host)
        write_model(store.images(host, vm) / made.id / "manifest.json", made)
    write_model(store.images("kvm1", "web1") / ".partial-x" / "manifest.json", image_manifest(id="20270101T000000Z"))
    (store.images("kvm1", "web1") / "20260104T000000Z").mkdir()
    assert [found.id[7] for _, found in store.images_of("web1")] == ["3", "2", "1"]
    assert len(list(store.all_images())) == 4


def test_image_manifest_of_a_store_keeps_unlisted_disks_out() -> None:
    disk = DiskRecord(target="vda", file="a", format="raw", source="/x", virtual_size_bytes=1)
    with pytest.raises(ValueError, match="no checksum"):
        image_manifest(disks=(disk,), files=(FileRecord(path="b", size_bytes=1, sha256=ZEROS),))
    assert NIGHT.tzinfo is not None
