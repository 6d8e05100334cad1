"""Which image an update is made of: the newest that fits, an older one when that is of no use, or the one asked for."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.cli import kvm, terminal
from flows.kvmimg_get import kvmimg_get
from flows.kvmimg_update import kvmimg_update as kvmimg_update_flow
from flows.nightly import nightly as nightly_flow
from tasks import places
from tasks.drivers import appliance, instant_records
from tasks.drivers.appliance import DiskFile, UpdateResult
from tasks.drivers.recovery_put import Ledger
from tasks.drivers.store import write_model
from tasks.errors import ImageUnfit, IntegrityError, NothingToRecover, StoreError, UnknownName
from tasks.model.instant import InstantState, InstantVm
from tasks.model.manifest import MANIFEST, ImageManifest
from tasks.model.names import new_id
from tasks.model.recovery_record import PutRecord
from tests.flows.fake_site import UUID, FakeSite
from tests.unit.records import NIGHT

nightly: Any = nightly_flow
kvmimg_update: Any = kvmimg_update_flow


class Updates:
    """Stands for the appliance: the disks that it was given, and the errors that it raises first."""

    def __init__(self) -> None:
        self.given: list[Path] = []
        self.errors: list[Exception] = []

    def update(self, disks: list[DiskFile], *_: object, **__: object) -> UpdateResult:
        """Stands for appliance.update_files."""
        self.given += [disk.path for disk in disks]
        if self.errors:
            raise self.errors.pop(0)
        return UpdateResult(1, 0, 4, 1.0, 1.0)


@pytest.fixture(name="updates", autouse=True)
def _updates(monkeypatch: pytest.MonkeyPatch) -> Updates:
    updates = Updates()
    monkeypatch.setattr(appliance, "update_files", updates.update)
    return updates


@pytest.fixture(name="images")
def _images(site: FakeSite) -> tuple[ImageManifest, ImageManifest]:
    """A night of the VM and two images of it, the older one first."""
    nightly(["kvm1", "web1"])
    ((_, older),) = places.store().images_of("web1")
    while new_id(datetime.now(UTC)) <= older.id:
        time.sleep(0.05)
    newer = kvmimg_get("web1", full=True)
    assert newer.id > older.id
    return older, newer


def _damage(image: ImageManifest) -> None:
    folder = places.store().images("kvm1", "web1") / image.id
    with (folder / image.disks[0].file).open("r+b") as file:
        file.write(b"damage")


def _left(site: FakeSite) -> list[str]:
    return [path.name for path in (site.store / "recovery").glob("web1/.*")]


@pytest.mark.parametrize("kind", ["damaged", "unfit"])
def test_image_of_no_use_gives_way_to_the_one_before_and_the_outcome_says_so(
    site: FakeSite, images: tuple[ImageManifest, ImageManifest], updates: Updates, kind: str
) -> None:
    older, newer = images
    if kind == "damaged":
        _damage(newer)
    else:
        updates.errors = [ImageUnfit(f"image {newer.id}", "/ (ext4) with UUID u", "no file system")]
    state = kvmimg_update_flow("web1", return_state=True)
    updated: Any = state.result()
    assert state.name == "Completed: warning"
    assert updated.image == older.id
    (warning,) = updated.warnings
    assert newer.id in warning
    assert f"image {older.id} was taken instead" in warning
    assert _left(site) == []


@pytest.mark.parametrize("named", ["by nothing", "by a recovery", "by a VM that runs", "by what cannot be read"])
def test_copy_of_a_recovery_that_was_killed_before_it_was_noted_goes_with_the_next_update(
    site: FakeSite, images: tuple[ImageManifest, ImageManifest], named: str
) -> None:
    made = kvmimg_update("web1")
    copy = made.model_copy(update={"passing": True, "folder": made.folder.with_name("20260101T000000Z")})
    write_model(made.folder.rename(copy.folder) / MANIFEST, copy)
    store = places.store()
    if named == "by a recovery":
        known = {"run": "r", "vm": "web1", "kvm_host": "kvm1", "name": "web1", "uuid": UUID, "image": "i"}
        record = PutRecord(**known, night="n", isolated=False, files=(), working_copy=str(copy.folder))
        Ledger(store, "kvm1", UUID).write(record)
    elif named == "by a VM that runs":
        of: dict[str, Any] = {"run": "r", "vm": "web1", "uuid": UUID, "kvm_host": "kvm1", "image": "i", "xml": ""}
        of |= {"image_folder": Path("/i"), "night": "n", "started": NIGHT, "disks": (), "dropped": ()}
        held = InstantVm(**of, state=InstantState.OFF, working_copy=copy.folder)
        instant_records.write(store, held, InstantState.OFF)
    elif named == "by what cannot be read":  # nothing of what it named is left in it
        path = instant_records.folder_of(store) / f"{UUID}.json"
        path.parent.mkdir(parents=True)
        path.write_text("")
    other = kvmimg_update("web1")
    assert other.folder != copy.folder
    assert other.folder.is_dir()
    assert copy.folder.exists() == (named != "by nothing")


def test_image_that_was_asked_for_is_taken_and_never_another(
    site: FakeSite, images: tuple[ImageManifest, ImageManifest], updates: Updates
) -> None:
    older, newer = images
    updated = kvmimg_update("web1", image=older.id)
    assert (updated.image, updated.warnings) == (older.id, ())
    _damage(newer)
    with pytest.raises(IntegrityError, match=newer.id):
        kvmimg_update("web1", image=newer.id)
    with pytest.raises(UnknownName, match=f"no image named 'nosuch'.*{newer.id}"):
        kvmimg_update("web1", image="nosuch")
    assert len(updates.given) == 1
    assert _left(site) == []


def _run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)


@pytest.fixture(name="failing_disk")
def _failing_disk(images: tuple[ImageManifest, ImageManifest], tmp_path: Path) -> Iterator[Callable[[], None]]:
    """What takes from the newer image's folder the device that it lies on."""
    folder, device = places.store().images("kvm1", "web1") / images[1].id, tmp_path / "device"
    device.touch()
    os.truncate(device, 32 << 20)
    _run("mkfs.ext4", "-q", device)
    kept = folder.rename(folder.with_name(".kept"))
    folder.mkdir()
    _run("mount", "-o", "loop", device, folder)
    try:
        (folder / "lost+found").rmdir()
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        _run("mount", "-o", "remount,ro", folder)  # written to, the device would get its blocks back, empty

        def fail() -> None:
            os.truncate(device, 64 << 10)
            for file in folder.iterdir():
                with file.open("rb") as handle:
                    os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        yield fail
    finally:
        _run("umount", folder)
        folder.rmdir()
        kept.rename(folder)


def test_store_that_cannot_be_read_is_no_damage_of_the_image(
    site: FakeSite, failing_disk: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(*_: object, **__: object) -> UpdateResult:
        failing_disk()
        raise IntegrityError("image", "a sound ext4 on /", "Input/output error (/etc)")  # as the guest sees it

    monkeypatch.setattr(appliance, "update_files", update)
    with pytest.raises(StoreError, match=r"store .*/images/kvm1/web1/.*: cannot be read: Input/output error"):
        kvmimg_update("web1")
    assert _left(site) == []


def test_no_image_left_is_the_error_of_the_last(
    site: FakeSite, images: tuple[ImageManifest, ImageManifest], updates: Updates
) -> None:
    for image in images:
        _damage(image)
    with pytest.raises(IntegrityError, match=images[0].id):
        kvmimg_update("web1")
    assert updates.given == []
    assert not (site.store / "recovery/web1").exists()


def test_second_update_to_the_same_night_is_the_first_one(
    site: FakeSite, images: tuple[ImageManifest, ImageManifest], updates: Updates
) -> None:
    first, second = kvmimg_update("web1"), kvmimg_update("web1")
    assert second == first
    assert len(updates.given) == 1


def test_command_exits_3_with_a_warning_and_without_an_image_says_so(
    images: tuple[ImageManifest, ImageManifest], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "show_progress", lambda: None)
    monkeypatch.setattr("flows.cli.terminal.signal.signal", lambda *_: None)
    _damage(images[1])
    monkeypatch.setattr(sys, "argv", ["gbs-kvmimg-update", "web1"])
    with pytest.raises(SystemExit) as ended:
        terminal.run(kvm.kvmimg_update_command)
    assert ended.value.code == 3
    assert f"image {images[0].id} was taken instead" in capsys.readouterr().out
    for folder, _ in places.store().images_of("web1"):
        (folder / "manifest.json").unlink()
    with pytest.raises(NothingToRecover, match="no image of it"):
        kvmimg_update("web1")
