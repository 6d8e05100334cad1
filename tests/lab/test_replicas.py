"""Replicas in the permanent store, with real files: the same by sha256sum and cmp, or not there at all."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tasks.drivers import replica_check, replicas
from tasks.drivers.chunks import CHUNK_BYTES, digest_of, write_chunks
from tasks.drivers.digest import record, sha256_file
from tasks.drivers.permanent import MARKER, PermanentPlace
from tasks.drivers.replica_check import check
from tasks.drivers.store import Store, publish, write_model
from tasks.drivers.thin_file import PIECE_BYTES
from tasks.errors import IntegrityError, StoreFull, StoreNotMounted
from tasks.model.manifest import MANIFEST, OWN, TEMPLATE, DiskRecord, FileRecord, ImageManifest
from tasks.model.names import new_id
from tasks.model.replica import Original
from tests.unit.records import NIGHT, image_manifest

DISK_CHUNKS = 9
RANDOM = random.Random(5)


@pytest.fixture(autouse=True)
def _few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (replicas, replica_check):
        monkeypatch.setattr(module, "AT_A_TIME", 2)


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that can share what files have in common."""
    folder = tmp_path_factory.mktemp("xfs")
    with (folder / "disk").open("wb") as disk:
        disk.truncate(1 << 30)
    subprocess.run(["mkfs.xfs", "-q", folder / "disk"], check=True)
    (folder / "mounted").mkdir()
    subprocess.run(["mount", "-o", "loop", folder / "disk", folder / "mounted"], check=True)
    try:
        yield folder / "mounted"
    finally:
        subprocess.run(["umount", "--lazy", folder / "mounted"], check=True)


@pytest.fixture
def sharing(xfs: Path) -> PermanentPlace:
    """An empty permanent store on it."""
    subprocess.run(["find", xfs, "-mindepth", "1", "-delete"], check=True)
    (xfs / MARKER).write_text("far-1")
    return PermanentPlace(xfs, "far-1", "local")


@pytest.fixture
def far(tmp_path: Path) -> PermanentPlace:
    """An empty permanent store."""
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / MARKER).write_text("far-1")
    return PermanentPlace(tmp_path / "far", "far-1", "local")


class Vm:
    """A VM with a disk that is written to, and images of it as the backup API leaves them."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.disk = root / "disk"
        root.mkdir()
        self.disk.touch()
        os.truncate(self.disk, DISK_CHUNKS * CHUNK_BYTES + 5000)
        self.taken: list[ImageManifest] = []
        for number in (0, 2, 5, DISK_CHUNKS):
            self.write(number * CHUNK_BYTES, 3000)

    def write(self, offset: int, size: int, content: bytes | None = None) -> None:
        with self.disk.open("r+b") as disk:
            disk.seek(offset)
            disk.write(content or RANDOM.randbytes(size))

    def image(self) -> Original:
        """The disk as it is now, published."""
        made = NIGHT + timedelta(days=len(self.taken))
        folder = self.store.images("kvm1", "web1") / new_id(made)
        partial = folder.with_name(".partial")
        partial.mkdir(parents=True)
        subprocess.run(["cp", "--sparse=always", self.disk, partial / "vda.raw"], check=True)
        digests = {}
        with self.disk.open("rb") as disk:
            for number in range(DISK_CHUNKS + 1):
                if (digest := digest_of(disk.read(CHUNK_BYTES))) is not None:
                    digests[number] = digest
        write_chunks(partial / "vda.raw.chunks", digests)
        (partial / "domain.xml").write_text("<domain/>")
        size = self.disk.stat().st_size
        disks = (DiskRecord(target="vda", file="vda.raw", format="raw", source="/a", virtual_size_bytes=size),)
        files = (
            FileRecord(path="vda.raw", size_bytes=size, chunks="vda.raw.chunks"),
            *(record(partial / name, partial) for name in ("vda.raw.chunks", "domain.xml")),
        )
        parent = self.taken[-1].id if self.taken else None
        manifest = image_manifest(made, method="backup-api", disks=disks, files=files, parent=parent)
        write_model(partial / MANIFEST, manifest)
        publish(partial, folder)
        self.taken.append(manifest)
        place = "_images/kvm1/web1"
        basis = f"{place}/{parent}" if parent else None
        return Original("image", "web1", manifest.id, folder, f"{place}/{manifest.id}", files, parent=basis)


@pytest.fixture
def vm(tmp_path: Path) -> Vm:
    return Vm(tmp_path / "store")


def same(one: Path, other: Path) -> bool:
    """Whether diff(1) finds two folders the same, hidden files and all."""
    return subprocess.run(["diff", "-r", one, other], check=False, capture_output=True).returncode == 0


def test_a_replica_is_the_same_as_its_original_and_as_thin(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    seen: list[tuple[int, int | None]] = []
    written = replicas.replicate(far, original, on_progress=lambda done, total: seen.append((done, total)))
    replica = far.path / original.place
    assert same(original.folder, replica)
    assert (replica / "vda.raw").stat().st_blocks * 512 <= 4 * PIECE_BYTES  # of 36 MiB
    assert written is not None
    assert seen[-1][0] == seen[-1][1]
    assert oct((far.path / "_images").stat().st_mode)[-3:] == "700"


def test_a_replica_that_is_there_is_not_made_again(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    replicas.replicate(far, original)
    before = (far.path / original.place / "vda.raw").stat()
    assert replicas.replicate(far, original) is None
    assert (far.path / original.place / "vda.raw").stat() == before


def test_of_an_increment_only_what_changed_is_written(vm: Vm, sharing: PermanentPlace) -> None:
    first = vm.image()
    replicas.replicate(sharing, first)
    vm.write(2 * CHUNK_BYTES, 3000, bytes(3000))
    vm.write(7 * CHUNK_BYTES - 100, 200)
    second = vm.image()
    written = replicas.replicate(sharing, second)
    assert same(second.folder, sharing.path / second.place)
    assert same(first.folder, sharing.path / first.place)
    assert written is not None
    assert written < 4 * CHUNK_BYTES


def test_where_nothing_can_be_shared_all_is_written_as_anew(vm: Vm, far: PermanentPlace) -> None:
    replicas.replicate(far, vm.image())
    vm.write(2 * CHUNK_BYTES, 3000, bytes(3000))
    original = vm.image()
    replicas.replicate(far, original)
    assert same(original.folder, far.path / original.place)


def test_rubbish_in_a_half_made_clone_is_found(vm: Vm, sharing: PermanentPlace) -> None:
    replicas.replicate(sharing, vm.image())
    vm.write(0, 3000)
    original = vm.image()

    def cut(*_: object) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        replicas.replicate(sharing, original, on_progress=cut)
    (partial,) = (sharing.path / "_images/kvm1/web1").glob(".partial-*")
    assert (partial / ".vda.raw.cloned-from").exists()
    with (partial / "vda.raw").open("r+b") as disk:
        disk.write(b"what another program wrote")
    replicas.replicate(sharing, original)
    assert same(original.folder, sharing.path / original.place)
    assert [path.name for path in (sharing.path / original.place).glob(".*")] == []


def test_a_grown_and_a_shrunk_disk_are_as_they_are(vm: Vm, far: PermanentPlace) -> None:
    for size in (DISK_CHUNKS * CHUNK_BYTES + 5000, 6 * CHUNK_BYTES + 100, DISK_CHUNKS * CHUNK_BYTES):
        os.truncate(vm.disk, size)
        original = vm.image()
        replicas.replicate(far, original)
        assert same(original.folder, far.path / original.place)


@pytest.mark.parametrize("increment", [False, True])
def test_what_a_cut_link_left_is_gone_on_with(
    vm: Vm, far: PermanentPlace, monkeypatch: pytest.MonkeyPatch, increment: bool
) -> None:
    if increment:
        replicas.replicate(far, vm.image())
    for number in range(DISK_CHUNKS):
        vm.write(number * CHUNK_BYTES, 500)
    original = vm.image()

    def cut(done: int, _total: int | None) -> None:
        if done >= 2 * replicas.AT_A_TIME * CHUNK_BYTES:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        replicas.replicate(far, original, on_progress=cut)
    assert not (far.path / original.place).exists()
    written = replicas.replicate(far, original)
    assert same(original.folder, far.path / original.place)
    assert written is not None
    assert written < (DISK_CHUNKS - 2 * replicas.AT_A_TIME + 2) * CHUNK_BYTES


def test_a_cut_clone_whose_parent_is_gone_meanwhile_is_still_right(vm: Vm, sharing: PermanentPlace) -> None:
    first = vm.image()
    replicas.replicate(sharing, first)
    vm.write(0, 3000, bytes(3000))
    second = vm.image()

    def cut(*_: object) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        replicas.replicate(sharing, second, on_progress=cut)
    subprocess.run(["rm", "-r", sharing.path / first.place], check=True)
    replicas.replicate(sharing, second)
    assert same(second.folder, sharing.path / second.place)


def test_a_damaged_original_makes_no_replica(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    damage_chunk(original.folder, 5)
    with pytest.raises(IntegrityError, match=r"store/images.*chunk 5"):
        replicas.replicate(far, original)
    assert not (far.path / original.place).exists()


def test_another_replica_in_its_place_stays(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    replicas.replicate(far, original)
    before = sha256_file(far.path / original.place / "vda.raw")
    write_model(original.folder / MANIFEST, vm.taken[0].model_copy(update={"warnings": ("another",)}))
    with pytest.raises(IntegrityError, match="another"):
        replicas.replicate(far, original)
    assert sha256_file(far.path / original.place / "vda.raw") == before


def test_a_vanished_original_leaves_its_replica_and_no_half_made_one(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    replicas.replicate(far, original)
    (far.path / original.place).with_name(".partial-20200101T000000Z").mkdir()
    subprocess.run(["rm", "-r", original.folder], check=True)
    replicas.forget_partial(far, "_images/kvm1/web1", set())
    assert [path.name for path in (far.path / "_images/kvm1/web1").iterdir()] == [original.id]


def test_a_template_is_linked_to_the_replica_of_its_image(vm: Vm, far: PermanentPlace) -> None:
    image = vm.image()
    replicas.replicate(far, image)
    template = vm.store.templates / "f1" / image.id
    template.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-rl", "--", image.folder, template], check=True)
    (template / TEMPLATE).write_text("{}")
    original = Original(
        "template", "web1", image.id, template, f"_templates/f1/{image.id}", image.files, (TEMPLATE,), twin=image.place
    )
    partial = (far.path / original.place).with_name(f".partial-{image.id}")
    partial.mkdir(parents=True)
    (partial / "vda.raw").write_text("half, of a try when the image was not there yet")
    assert replicas.replicate(far, original) == 0
    replica = far.path / original.place
    assert same(template, replica)
    assert (replica / "vda.raw").samefile(far.path / image.place / "vda.raw")


def damage_chunk(folder: Path, place: int = 7) -> None:
    with (folder / "vda.raw").open("r+b") as disk:
        disk.seek(5 * CHUNK_BYTES + place)
        (byte,) = disk.read(1)
        disk.seek(5 * CHUNK_BYTES + place)
        disk.write(bytes([byte ^ 1]))


def damage_hole(folder: Path) -> None:
    with (folder / "vda.raw").open("r+b") as disk:
        disk.seek(7 * CHUNK_BYTES)
        disk.write(b"x")


def flip_a_bit(path: Path, last_of: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(last_of) + len(last_of) - 1] ^= 1
    path.write_bytes(content)


DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    ("vda.raw", damage_chunk),
    ("vda.raw", damage_hole),
    ("vda.raw", lambda folder: os.truncate(folder / "vda.raw", CHUNK_BYTES)),
    ("vda.raw", lambda folder: (folder / "vda.raw").unlink()),
    ("vda.raw.chunks", lambda folder: os.truncate(folder / "vda.raw.chunks", 20)),
    ("domain.xml", lambda folder: (folder / "domain.xml").unlink()),
    ("domain.xml", lambda folder: os.truncate(folder / "domain.xml", 3)),
    (MANIFEST, lambda folder: os.truncate(folder / MANIFEST, 20)),
    (MANIFEST, lambda folder: flip_a_bit(folder / MANIFEST, b'"vm": "web1"')),
    (MANIFEST, lambda folder: flip_a_bit(folder / MANIFEST, b'"parent": null')),
    (MANIFEST, lambda folder: flip_a_bit(folder / MANIFEST, b'"own_sha256": "')),
    (MANIFEST, lambda folder: (folder / MANIFEST).unlink()),
]


@pytest.mark.parametrize(("file", "damage"), DAMAGE)
def test_damage_is_found_and_healed_by_the_good_copy_on_either_side(
    vm: Vm, far: PermanentPlace, file: str, damage: Callable[[Path], None]
) -> None:
    original = vm.image()
    replicas.replicate(far, original)
    replica = far.path / original.place
    for bad, good in ((replica, original.folder), (original.folder, replica)):
        damage(bad)
        assert not same(bad, good)
        assert check(far, "image", bad, None).left == (file,)
        assert not same(bad, good)
        found = check(far, "image", bad, good)
        assert (found.damaged, found.left) == ((file,), ())
        assert same(bad, good)


def test_a_damaged_copy_never_replaces_a_good_one_nor_heals_a_damaged_one(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    replicas.replicate(far, original)
    replica = far.path / original.place
    damage_chunk(original.folder)
    assert check(far, "image", replica, original.folder).damaged == ()
    damage_chunk(replica, 9)
    before = sha256_file(replica / "vda.raw")
    assert check(far, "image", replica, original.folder).left == ("vda.raw",)
    assert sha256_file(replica / "vda.raw") == before


def test_damage_that_a_sample_meets_is_healed_as_a_whole(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    replicas.replicate(far, original)
    replica = far.path / original.place
    (replica / "vda.raw").unlink()
    found = check(far, "image", replica, original.folder, 1)
    assert (found.damaged, found.left) == (("vda.raw",), ())
    assert same(original.folder, replica)


def test_a_good_copy_that_is_too_short_heals_nothing(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    replicas.replicate(far, original)
    replica = far.path / original.place
    damage_hole(replica)
    os.truncate(original.folder / "vda.raw", 7 * CHUNK_BYTES)
    assert check(far, "image", replica, original.folder).left == ("vda.raw",)


def test_a_manifest_that_can_be_read_and_is_not_what_it_was_is_healed(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    replicas.replicate(far, original)
    replica = far.path / original.place
    sha256 = sha256_file(replica / "domain.xml")
    text = (replica / MANIFEST).read_text()
    (replica / MANIFEST).write_text(text.replace(sha256, sha256.translate(str.maketrans("0123", "1032"))))
    assert check(far, "image", replica, original.folder).healed == (MANIFEST,)
    assert same(original.folder, replica)


def test_what_a_killed_healing_left_goes(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    replicas.replicate(far, original)
    (far.path / original.place / ".domain.xml.heal").write_text("half")
    check(far, "image", far.path / original.place, None)
    assert same(original.folder, far.path / original.place)


def test_a_sample_reads_a_part(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    replicas.replicate(far, original)
    whole = check(far, "image", far.path / original.place, None).read_bytes
    part = check(far, "image", far.path / original.place, None, 30).read_bytes
    assert 0 < part < whole


def test_all_that_is_published_is_found_and_nothing_half_made(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    replicas.replicate(far, original)
    subprocess.run(["cp", "-r", far.path / original.place, far.path / "_images/kvm1/web1/.partial-1"], check=True)
    assert replicas.published(far.path) == {original.place: "image"}


def test_a_store_without_its_marker_gets_nothing(vm: Vm, far: PermanentPlace) -> None:
    (far.path / MARKER).unlink()
    with pytest.raises(StoreNotMounted):
        replicas.replicate(far, vm.image())
    assert list(far.path.iterdir()) == []


def test_what_is_kept_in_reserve_is_not_used(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    with pytest.raises(StoreFull):
        replicas.replicate(far, original, reserve_bytes=1 << 60)
    assert not (far.path / original.place).exists()


def test_a_store_without_room_is_refused_before_it_is_filled(
    vm: Vm, far: PermanentPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = far.path.parent / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], check=True)
    try:
        (small / MARKER).write_text("far-1")
        with pytest.raises(StoreFull):
            replicas.replicate(PermanentPlace(small, "far-1", "local"), vm.image())
    finally:
        subprocess.run(["umount", small], check=True)


def unsealed(manifest: Path) -> None:
    """As those are that were written before they had their own sha256."""
    record = json.loads(manifest.read_text())
    del record[OWN]
    manifest.write_text(json.dumps(record))


def test_two_old_manifests_that_differ_are_told_and_left_as_nothing_tells_which_is_damaged(
    vm: Vm, far: PermanentPlace
) -> None:
    original = vm.image()
    unsealed(original.folder / MANIFEST)
    replicas.replicate(far, original)
    replica = far.path / original.place
    flip_a_bit(replica / MANIFEST, b'"vm": "web1')
    before = (replica / MANIFEST).read_bytes()
    assert check(far, "image", replica, original.folder).left == (MANIFEST,)
    assert (replica / MANIFEST).read_bytes() == before


def test_a_replica_is_that_of_an_original_that_is_older_than_seals(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    replicas.replicate(far, original)
    unsealed(original.folder / MANIFEST)
    assert replicas.replicate(far, original) is None
    assert check(far, "image", far.path / original.place, original.folder).damaged == ()


def test_a_replica_whose_manifest_has_a_flipped_bit_is_told_as_damaged(vm: Vm, far: PermanentPlace) -> None:
    original = vm.image()
    replicas.replicate(far, original)
    flip_a_bit(far.path / original.place / MANIFEST, b'"vm": "web1')
    with pytest.raises(IntegrityError, match=r"manifest\.json is damaged: .* not what it was written as"):
        replicas.replicate(far, original)
