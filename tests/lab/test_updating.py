"""The working copy of an update: killed anywhere, nothing of it is taken for a good one, and the image is as before."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import updating
from tasks.drivers import appliance, qemu_img, whole_disk
from tasks.drivers.appliance import DiskFile, UpdateResult
from tasks.drivers.chunks import CHUNK_BYTES, SUFFIX, digest_of, write_chunks
from tasks.drivers.digest import record
from tasks.drivers.store import Store, write_model
from tasks.model.manifest import MANIFEST, DiskRecord, FileRecord
from tasks.model.recovery import Sources, UpdatedImage
from tests.unit.records import image_manifest, night_manifest

SIZE = 8 << 20
CHANGED = b"\xcd" * 65536


@pytest.fixture(name="sources")
def _sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """An image of two raw disks, of which the VM had one as qcow2, in a store."""
    store = Store(tmp_path / "store")
    places = types.SimpleNamespace(store=lambda: store, reserve_bytes=lambda: 0)
    monkeypatch.setattr(updating, "places", places)
    monkeypatch.setattr(appliance, "update_files", _write_into)
    monkeypatch.setattr(updating, "read_model", _read_model)
    folder = store.images("kvm1", "web1") / "20261102T020000Z"
    folder.mkdir(parents=True)
    disks, files = [], list[FileRecord]()
    for target, was in (("vda", "raw"), ("vdb", "qcow2")):
        path = folder / f"{target}.raw"
        content = os.urandom(1 << 20) + bytes(SIZE - (1 << 20))
        path.write_bytes(content)
        chunks = {number: content[number * CHUNK_BYTES :][:CHUNK_BYTES] for number in range(SIZE // CHUNK_BYTES)}
        listing = path.with_name(path.name + SUFFIX)
        write_chunks(listing, {number: found for number, chunk in chunks.items() if (found := digest_of(chunk))})
        files += [FileRecord(path=path.name, size_bytes=SIZE, chunks=listing.name), record(listing, folder)]
        disks.append(
            DiskRecord(
                target=target,
                file=path.name,
                format="raw",
                source=f"/images/{target}",
                source_format=was,
                virtual_size_bytes=SIZE,
            )
        )
    image = image_manifest(disks=tuple(disks), files=tuple(files))
    write_model(folder / MANIFEST, image)
    return Sources(
        vm="web1",
        client="web1",
        kvm_host="kvm1",
        xml="",
        image_folder=folder,
        image=image,
        night_name="daily.0",
        night_folder=tmp_path,
        night=night_manifest(),
    )


def _read_model(path: Path, model: Any) -> Any:
    """Facts with a root; the manifests as they are."""
    if path.name == "facts.json":
        row = types.SimpleNamespace(mountpoint="/", source="/dev/vda", fstype="ext4", uuid="u")
        return types.SimpleNamespace(file_systems=(row,), bind_mounts=(), os_name="x")
    return model.model_validate_json(path.read_bytes()) if path.exists() else None


def _write_into(disks: list[DiskFile], *_: object, **__: object) -> UpdateResult:
    """Stands for the appliance."""
    for disk in disks:
        argv = ["qemu-io", "-f", disk.format, "-c", "write -q -P 0xcd 4M 64k", str(disk.path)]
        subprocess.run(argv, check=True)
    return UpdateResult(1, 0, 65536, 1.0, 1.0)


def _run(sources: Sources) -> UpdatedImage:
    """As flows/kvmimg_update does it, without Prefect."""
    updating.verify_sources.fn(sources.image_folder, sources.image)
    folder = updating.begin.fn(sources)
    return updating.finish.fn(sources, folder, updating.update.fn(sources, Path("/night"), folder))


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _raw(disk: Path, disk_format: str) -> bytes:
    out = disk.with_name("converted")
    subprocess.run(["qemu-img", "convert", "-f", disk_format, "-O", "raw", disk, out], check=True)
    content = out.read_bytes()
    out.unlink()
    return content


def test_result_is_whole_in_the_formats_of_the_vm_and_the_image_is_untouched(sources: Sources) -> None:
    before = _digests(sources.image_folder)
    made = _run(sources)
    assert _digests(sources.image_folder) == before
    assert sorted(os.listdir(made.folder)) == [MANIFEST, "vda.raw", "vdb.qcow2"]
    for disk, base in zip(made.disks, sources.image.disks, strict=True):
        old = (sources.image_folder / base.file).read_bytes()
        wanted = old[: 4 << 20] + CHANGED + old[(4 << 20) + len(CHANGED) :]
        assert _raw(made.folder / disk.file, disk.format) == wanted
        info = subprocess.run(["qemu-img", "info", made.folder / disk.file], check=True, capture_output=True, text=True)
        assert f"file format: {disk.format}" in info.stdout
        assert "backing" not in info.stdout
    listed = "".join(f"{file.sha256}  {file.path}\n" for file in made.files)
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet"], cwd=made.folder, input=listed, text=True, check=True
    )


STEPS: dict[str, tuple[Any, str]] = {
    "overlays made": (qemu_img, "create_overlay"),
    "updated": (appliance, "update_files"),
    "first disk whole": (whole_disk, "make"),
    "first disk checked": (qemu_img, "check"),
    "checksums made": (updating, "record"),
    "manifest written": (updating, "write_model"),
}


def _killed_after(module: Any, name: str, sources: Sources) -> None:
    real: Callable[..., Any] = getattr(module, name)

    def then_die(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, then_die)
    _run(sources)


@pytest.mark.parametrize("step", STEPS)
def test_killed_run_leaves_nothing_that_is_taken_for_good_and_the_next_removes_it(sources: Sources, step: str) -> None:
    before = _digests(sources.image_folder)
    child = multiprocessing.get_context("fork").Process(target=_killed_after, args=(*STEPS[step], sources))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    recovery = sources.image_folder.parents[3] / "recovery/web1"
    (left,) = recovery.iterdir()
    assert updating.earlier.fn(sources) is None
    made = _run(sources)
    assert list(recovery.iterdir()) == [made.folder]
    assert not left.exists()
    assert _digests(sources.image_folder) == before


def test_the_copy_of_a_recovery_that_was_killed_is_no_result_for_others(sources: Sources) -> None:
    folder = updating.begin.fn(sources)
    result = updating.update.fn(sources, Path("/night"), folder)
    made = updating.finish.fn(sources, folder, result, passing=True)
    assert made.folder.is_dir()
    assert updating.earlier.fn(sources) is None


def test_earlier_result_serves_again_while_its_checksums_hold(sources: Sources) -> None:
    made = _run(sources)
    assert updating.earlier.fn(sources) == made
    other = sources.model_copy(update={"night": sources.night.model_copy(update={"id": "20261103T020000Z"})})
    assert updating.earlier.fn(other) is None
    with (made.folder / "vda.raw").open("r+b") as file:
        file.write(b"damage")
    assert updating.earlier.fn(sources) is None
