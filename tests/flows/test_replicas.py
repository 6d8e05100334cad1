"""What the permanent store has besides restore points: replicas, each once, read again, healed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from flows.image_fetch import image_fetch as image_fetch_flow
from flows.kvmimg_get import kvmimg_get as kvmimg_get_flow
from flows.nightly import nightly as nightly_flow
from flows.replicate import replicate as replicate_flow
from flows.verify_images import verify_images as verify_images_flow
from flows.verify_replicas import verify_replicas as verify_flow
from tasks.drivers.lock import hold
from tasks.drivers.store import Store, read_model, write_model
from tasks.errors import ClientsFailed, IntegrityError, NothingToRecover
from tasks.model.manifest import ImageManifest, NightManifest
from tests.flows.test_night import outcomes

if TYPE_CHECKING:
    from tests.flows.fake_site import FakeSite

kvmimg_get: Any = kvmimg_get_flow
nightly: Any = nightly_flow
replicate: Any = replicate_flow
image_fetch: Any = image_fetch_flow
verify_images: Any = verify_images_flow
verify_replicas: Any = verify_flow


def same(one: Path, other: Path) -> bool:
    return subprocess.run(["diff", "-r", one, other], check=False, capture_output=True).returncode == 0


@pytest.fixture
def kept(site: FakeSite) -> tuple[Path, Path]:
    """After a night: the image of web1, and its replica."""
    nightly()
    (replica,) = site.permanent.glob("_images/kvm1/web1/[!.]*")
    return site.store / "images/kvm1/web1" / replica.name, replica


def test_a_night_brings_images_and_the_recovery_set_to_the_permanent_store(
    site: FakeSite, kept: tuple[Path, Path]
) -> None:
    assert same(*kept)
    (gathered,) = (site.store / "server").glob("[!.]*")
    assert same(gathered, site.permanent / "_server/test" / gathered.name)
    assert (gathered / "inventory.yaml").read_text() == site.inventory.read_text()
    assert json.loads((gathered / "blocks.json").read_text())["permanent"]["data"]["path"] == str(site.permanent)
    assert (gathered / "prefect.db.age").stat().st_size > 10_000


def test_what_is_there_is_not_brought_again_and_a_vanished_image_stays(site: FakeSite, kept: tuple[Path, Path]) -> None:
    original, replica = kept
    assert outcomes(replicate())["web1 replicate"] == "SKIPPED"
    shutil.rmtree(original)
    assert "web1 replicate" not in outcomes(replicate())
    assert (replica / "manifest.json").exists()


def test_a_clients_own_night_brings_its_image_and_nothing_else(site: FakeSite) -> None:
    nightly(["kvm1"])
    assert not list(site.permanent.glob("_*"))
    assert outcomes(nightly(["web1"]))["web1 replicate"] == "OK"
    assert [path.name for path in sorted(site.permanent.glob("_*"))] == ["_images", "_runbooks"]


def test_a_damaged_replica_is_healed_and_one_that_cannot_be_fails_alone(
    site: FakeSite, kept: tuple[Path, Path]
) -> None:
    original, replica = kept
    with (replica / "vda.raw").open("r+b") as disk:
        disk.write(b"damage")
    healed = {result.produced: result for result in verify_replicas()}
    assert same(original, replica)
    row = healed[f"_images/kvm1/web1/{replica.name}"]
    assert (row.client, row.outcome.value) == ("web1", "WARNING")
    assert "vda.raw" in row.reasons[0]
    with (replica / "vda.raw").open("r+b") as disk:
        disk.write(b"damage")
    shutil.rmtree(original)
    with pytest.raises(ClientsFailed, match=r"web1 verify: .*_images/kvm1/web1/.*/vda\.raw is damaged"):
        verify_replicas()


def test_a_damaged_image_is_healed_by_its_replica(kept: tuple[Path, Path]) -> None:
    original, replica = kept
    with (original / "vda.raw").open("r+b") as disk:
        disk.write(b"damage")
    (row,) = verify_images()
    assert (row.client, row.outcome.value) == ("web1", "WARNING")
    assert "vda.raw" in row.reasons[0]
    assert same(original, replica)


def test_one_manifest_that_cannot_be_read_stops_nobody_and_is_healed(site: FakeSite, kept: tuple[Path, Path]) -> None:
    original, replica = kept
    (original / "manifest.json").write_text("{")
    assert outcomes(replicate())["GBS server replicate"] in ("OK", "SKIPPED")
    assert [(row.client, row.outcome.value) for row in verify_images()] == [("web1", "WARNING"), ("web1", "OK")]
    assert same(original, replica)


def test_while_a_verification_has_the_lock_one_row_fails_and_the_others_warn(
    site: FakeSite, kept: tuple[Path, Path]
) -> None:
    with hold(Store(site.store).lock("replica", "web1"), "replica web1"), pytest.raises(ClientsFailed) as failed:
        replicate()
    rows = {row: outcome for row, outcome in outcomes(failed.value.args[3]).items() if row.startswith("web1 ")}
    assert rows == {"web1 replicate": "FAILED", "web1 retain replicas": "WARNING", "web1 runbook": "WARNING"}


def test_what_cannot_be_noted_is_read_and_healed_all_the_same(site: FakeSite, kept: tuple[Path, Path]) -> None:
    """On a full store the first note failed, and nothing was read."""
    original, replica = kept
    shutil.rmtree(site.store / "verified", ignore_errors=True)
    (site.store / "verified").touch()
    for reading, hurt in ((verify_replicas, replica), (verify_images, original)):
        with (hurt / "vda.raw").open("r+b") as disk:
            disk.write(b"damage")
        with pytest.raises(ClientsFailed, match="verified"):  # nor can it be noted in the end
            reading()
        assert same(original, replica)
    with (replica / "vda.raw").open("r+b") as disk:
        disk.write(b"damage")
    shutil.rmtree(original)
    with pytest.raises(ClientsFailed, match=r"web1 verify: .*vda\.raw is damaged"):  # which matters more
        verify_replicas()


def test_an_image_that_the_store_has_lost_is_fetched_and_serves_again(site: FakeSite, kept: tuple[Path, Path]) -> None:
    original, replica = kept
    shutil.rmtree(original)
    with pytest.raises(NothingToRecover, match=f"it has {replica.name}"):
        image_fetch("web1", "20200101T000000Z")
    assert image_fetch("web1") == replica.name
    assert same(original, replica)
    assert image_fetch("web1", replica.name) == replica.name


def test_a_damaged_replica_is_not_fetched(site: FakeSite, kept: tuple[Path, Path]) -> None:
    original, replica = kept
    shutil.rmtree(original)
    with (replica / "vda.raw.chunks").open("a") as listing:
        listing.write("damage")
    with pytest.raises(IntegrityError, match=r"_images/kvm1/web1/.*vda\.raw\.chunks"):
        image_fetch("web1")
    assert not original.exists()


def test_a_damaged_original_fails_its_own_and_keeps_the_good_replica(site: FakeSite) -> None:
    nightly(["kvm1", "web1"])
    (replica,) = site.permanent.glob("_images/kvm1/web1/[!.]*")
    original = site.store / "images/kvm1/web1" / replica.name
    shutil.rmtree(replica)
    (original / "domain.xml").write_text("<other/>")
    with pytest.raises(ClientsFailed, match=r"web1 replicate: .*images/kvm1/web1/.*domain\.xml is damaged"):
        replicate()
    assert not replica.exists()
    assert list(site.permanent.glob("_server/test/[!.]*"))


def test_without_the_permanent_store_the_night_still_takes_images(site: FakeSite) -> None:
    (site.permanent / ".gbs-store").unlink()
    with pytest.raises(ClientsFailed) as failed:
        nightly()
    found = outcomes(failed.value.args[3])
    assert (found["web1 image"], found["web1 replicate"]) == ("OK", "FAILED")
    assert found["GBS server recovery set"] == "OK"
    assert not list(site.permanent.glob("_*"))


def take(site: FakeSite, count: int = 1) -> list[str]:
    """Images of web1 one after the other, oldest first."""
    for _ in range(count):
        time.sleep(1)  # an image's id is of the second
        kvmimg_get("web1")
    return sorted(path.name for path in (site.store / "images/kvm1/web1").glob("[!.]*"))


def replicas_of(site: FakeSite) -> list[str]:
    return sorted(path.name for path in (site.permanent / "_images/kvm1/web1").glob("[!.]*"))


def test_old_replicas_go_by_way_of_the_trash_and_do_not_come_back(site: FakeSite) -> None:
    site.policies = {"default": {"image_replicas": 2, "trash_days": 3}}
    site.create()
    nightly(["kvm1", "web1"])
    first, *_ = replicas_of(site)
    images = take(site, 2)
    assert outcomes(replicate())["web1 replicate"] == "OK"
    assert replicas_of(site) == images[1:]
    due = datetime.now(UTC).date() + timedelta(days=3)
    (gone,) = (site.permanent / "_images/kvm1/web1").glob(".trash-*")
    assert gone.name.startswith(f".trash-{due}-{first}-")
    assert same(site.store / "images/kvm1/web1" / first, gone)
    assert outcomes(replicate())["web1 replicate"] == "SKIPPED", "its image is there still, and wants no replica"
    assert replicas_of(site) == images[1:]
    gone.rename(gone.with_name(gone.name.replace(str(due), "2026-01-01")))
    replicate()
    assert not list((site.permanent / "_images/kvm1/web1").glob(".trash-*"))


def in_trash(folder: Path) -> list[Path]:
    """What was given up there, all of it due by now."""
    found = sorted(folder.glob(".trash-*"))
    return [path.rename(path.with_name(f".trash-2026-01-01-{path.name[18:]}")) for path in found]


def test_trash_of_a_vm_that_the_store_has_lost_is_emptied_and_its_replicas_stay(site: FakeSite) -> None:
    site.policies = {"default": {"image_replicas": 2, "trash_days": 3}}
    site.create()
    nightly(["kvm1", "web1"])
    images = take(site, 2)
    replicate()
    assert replicas_of(site) == images[1:]
    shutil.rmtree(site.store / "images/kvm1/web1")
    assert len(in_trash(site.permanent / "_images/kvm1/web1")) == 1
    for _ in range(2):
        assert outcomes(replicate()).get("web1 retain replicas") is None
        assert not in_trash(site.permanent / "_images/kvm1/web1")
        assert replicas_of(site) == images[1:]


def test_replicas_of_a_vm_that_neither_the_store_nor_the_inventory_knows_all_stay(site: FakeSite) -> None:
    site.policies = {"default": {"image_replicas": 4}}
    site.create()
    nightly(["kvm1", "web1"])
    images = take(site, 3)
    replicate()
    shutil.rmtree(site.store / "images/kvm1/web1")
    clients = site.clients()
    del clients["web1"]
    site.policies = {}
    site.declare({"kvm1": {"address": "kvm1.test", "paths": ["/etc"]}}, clients)
    replicate()
    assert replicas_of(site) == images


def below(folder: Path) -> dict[str, str]:
    """The files of the replicas that lie there, by sha256sum(1)."""
    argv = ["find", "_images", "_templates", "_devices", "_server", "-type", "f", "-exec", "sha256sum", "{}", "+"]
    lines = subprocess.run(argv, cwd=folder, check=True, capture_output=True, text=True).stdout.splitlines()
    return {line[66:]: line[:64] for line in lines}


def test_nothing_goes_from_the_permanent_store_because_it_vanished_here(
    site: FakeSite, kept: tuple[Path, Path]
) -> None:
    """Images, templates, configurations, recovery sets; what the inventory lost, too."""
    _, replica = kept
    for place in ("_templates/f1", "_devices/sw1"):
        shutil.copytree(replica, site.permanent / place / replica.name)
    before = below(site.permanent)
    assert {path.partition("/")[0] for path in before} == {"_images", "_templates", "_devices", "_server"}
    for name in ("images", "server", "overnight"):
        shutil.rmtree(site.store / name)
    replicate()
    assert before.items() <= below(site.permanent).items()
    clients = site.clients()
    del clients["web1"]
    site.declare({"kvm1": {"address": "kvm1.test", "paths": ["/etc"]}}, clients)
    nightly()
    replicate()
    assert before.items() <= below(site.permanent).items()


def test_recovery_sets_beyond_those_wanted_go_by_way_of_the_trash(site: FakeSite) -> None:
    site.policies = {"default": {"trash_days": 5}}
    site.create()
    declared = yaml.safe_load(site.inventory.read_text())
    declared.setdefault("server", {})["keep"] = 2
    site.inventory.write_text(yaml.safe_dump(declared))
    folder = site.permanent / "_server/test"
    for _ in range(3):
        replicate()
        time.sleep(1)  # a set's id is of the second
    kept = sorted(path.name for path in folder.glob("[!.]*"))
    assert len(kept) == 2
    due = datetime.now(UTC).date() + timedelta(days=5)
    (gone,) = folder.glob(".*")
    assert gone.name.startswith(f".trash-{due}-")
    assert (gone / "inventory.yaml").exists()
    in_trash(folder)
    (site.permanent / ".gbs-clock").touch()
    os.utime(site.permanent / ".gbs-clock", (1, 1))
    rows = {f"{row.client} {row.stage}": row for row in replicate()}
    assert rows["GBS server retain replicas"].outcome.value == "WARNING"
    assert len(list(folder.glob("[!.]*"))) == 3
    assert len(list(folder.glob(".trash-2026-01-01-*"))) == 1


def test_a_damaged_original_stops_no_retention_of_the_others(site: FakeSite) -> None:
    """From the night on that found it nothing of that VM was given up, nor its trash emptied: the far end filled up."""
    nightly(["kvm1", "web1"])
    take(site, 2)
    replicate()
    images = take(site)
    assert replicas_of(site) == images[:3]
    (site.store / "images/kvm1/web1" / images[3] / "domain.xml").write_text("<other/>")
    (site.permanent / "_images/kvm1/web1/.trash-2026-01-01-20200101T000000Z-abcd").mkdir()
    declared = yaml.safe_load(site.inventory.read_text())
    declared["policies"] = {"default": {"image_replicas": 2, "trash_days": 3}}
    site.inventory.write_text(yaml.safe_dump(declared))
    with pytest.raises(ClientsFailed, match=r"web1 replicate: .*domain\.xml is damaged"):
        replicate()
    assert replicas_of(site) == images[1:3], "two that are sound"
    (gone,) = (site.permanent / "_images/kvm1/web1").glob(".trash-*")
    assert images[0] in gone.name


def test_damage_that_nobody_healed_keeps_an_older_replica(site: FakeSite) -> None:
    site.policies = {"default": {"image_replicas": 1}}
    site.create()
    nightly(["kvm1", "web1"])
    (first,) = replicas_of(site)
    second = site.permanent / "_images/kvm1/web1" / take(site)[1]
    shutil.copytree(site.store / "images/kvm1/web1" / second.name, second)
    shutil.rmtree(site.store / "images/kvm1/web1" / second.name)
    (second / "domain.xml").write_text("<other/>")
    with pytest.raises(ClientsFailed, match=r"domain\.xml is damaged"):
        verify_replicas()
    replicate()
    assert replicas_of(site) == [first, second.name]
    (second / "domain.xml").write_bytes((second.with_name(first) / "domain.xml").read_bytes())
    verify_replicas()
    replicate()
    assert replicas_of(site) == [second.name]


def damage(folder: Path) -> None:
    with (folder / "vda.raw").open("r+b") as disk:
        disk.write(b"damage")


def test_known_damage_puts_the_others_in_doubt_but_once(site: FakeSite) -> None:
    site.policies = {"default": {"image_replicas": 1}}
    site.create()
    nightly(["kvm1", "web1"])
    folder = site.permanent / "_images/kvm1/web1"
    _, second, third = take(site, 2)
    for image in (second, third):
        shutil.copytree(site.store / "images/kvm1/web1" / image, folder / image)
    damage(folder / third)
    shutil.rmtree(site.store / "images/kvm1/web1" / third)
    for _ in range(2):  # the others, which are read before it, are read since in the second turn
        with pytest.raises(ClientsFailed, match=r"vda\.raw is damaged"):
            verify_replicas()
    replicate()
    assert replicas_of(site) == [second, third]


@pytest.mark.parametrize("verify", [verify_replicas, verify_images])
def test_one_that_stays_damaged_takes_no_others_turn(site: FakeSite, verify: Any) -> None:
    nightly(["kvm1", "web1"])
    take(site)
    replicate()
    shutil.rmtree(site.permanent / "_server")
    here, there = site.permanent / "_images/kvm1/web1", site.store / "images/kvm1/web1"
    bad, good = (here, there) if verify is verify_replicas else (there, here)
    (first, second) = replicas_of(site)
    damage(bad / first)
    shutil.rmtree(good / first)
    for _ in range(2):
        with pytest.raises(ClientsFailed, match=rf"{first}/vda\.raw.* is damaged"):
            verify(at_most=1)
        (row,) = verify(at_most=1)
        assert row.produced.endswith(second)


def test_an_image_of_the_disk_layout_of_an_old_night_stays(site: FakeSite) -> None:
    site.policies = {"default": {"image_replicas": 1}}
    site.create()
    nightly(["kvm1", "web1"])
    (first,) = replicas_of(site)
    image, night = site.permanent / "_images/kvm1/web1" / first / "manifest.json", site.permanent / "web1/daily.0"
    for path, model in ((image, ImageManifest), (night / "manifest.json", NightManifest)):
        found = read_model(path, model)
        assert found is not None
        write_model(path, found.model_copy(update={"flavour": "of old"}))
    shutil.rmtree(site.store / "images/kvm1/web1" / first)
    (second,) = take(site)
    replicate()
    assert replicas_of(site) == [first, second]
    shutil.rmtree(night)
    replicate()
    assert replicas_of(site) == [second]
