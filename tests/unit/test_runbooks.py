"""What a runbook is made of: the same image and night as a recovery, from both stores or the permanent one alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.drivers import permanent
from tasks.drivers.digest import sha256_file, write_listing
from tasks.drivers.runbooks import Stores, Wish, gather, keep
from tasks.drivers.store import Store, write_model
from tasks.errors import NothingToRecover, StoreNotMounted, UnknownName
from tasks.model.inventory import Inventory
from tasks.model.manifest import DumpRecord, ImageManifest
from tasks.model.runbook import TARGET, Place
from tasks.model.runbook_script import render
from tests.unit.records import NIGHT, ZEROS, facts, file_system, image_manifest, night_manifest

XML = (Path(__file__).parent / "golden/domain/lab.in.xml").read_text()
VENDOR = {
    "backup": ["vault", "put", "{source}", "{night}"],
    "list": ["echo", "20261102T020000Z"],
    "restore": ["vault", "get", "{client}/{night}", "--into={target}"],
}


class Site:
    """A KVM host's and web1's overnight copies, an image, and the same in the permanent store."""

    def __init__(self, folder: Path, **client: Any) -> None:
        key = {"private_key_file": "/etc/gbs/key", "known_hosts_file": "/etc/gbs/known_hosts"}
        self.declared = Inventory.model_validate(
            {
                "store": {"path": str(folder / "store")},
                "permanent": {"path": str(folder / "far"), "store_id": "far", "kind": "local"},
                "identities": {"default": key},
                "engines": {"vault": {"command": {**VENDOR, "environment_file": str(folder / "vault.env")}}},
                "policies": {"vault": {"engine": "vault"}},
                "kvm_hosts": {"kvm1": "kvm1.example.org", "kvm2": "kvm2.example.org"},
                "clients": {"web1": {"address": "web1.example.org", "vm": "web1", **client}},
            }
        )
        self.store, self.far = Store(folder / "store"), folder / "far"
        self.stores = Stores(self.declared, self.store, permanent.place_of(self.declared.permanent))
        self.far.mkdir()
        (folder / "vault.env").touch(0o600)
        (self.far / ".gbs-store").write_text("far\n")
        self.night(self.store.overnight("kvm1"), "kvm1", 0, {"etc/libvirt/qemu/web1.xml": XML})
        self.night(self.store.overnight("web1"), "web1", 1)
        self.night(self.far / "web1/daily.0", "web1", 0)
        self.image(self.store.root / "images/kvm1/web1", "aa", 1)
        self.image(self.store.root / "images/kvm1/web1", "other", 2)
        self.image(self.far / "_images/kvm1/web1", "aa", 0)

    def night(self, folder: Path, client: str, day: int, files: dict[str, str] | None = None) -> None:
        for name, text in (files or {"etc/hostname": "web1\n"}).items():
            (folder / "data" / name).parent.mkdir(parents=True)
            (folder / "data" / name).write_text(text)
        write_listing(folder / "data", folder / "SHA256SUMS", None, None)
        write_model(folder / "facts.json", facts(file_system("/", "/dev/vda1", "ext4", f"uuid-{day}")))
        sums = {
            "listing_sha256": sha256_file(folder / "SHA256SUMS"),
            "facts_sha256": sha256_file(folder / "facts.json"),
        }
        dumps = (
            DumpRecord(engine="postgresql", database="shop", path="/d/shop.dump", size_bytes=1, sha256=ZEROS),
            DumpRecord(engine="postgresql", kind="accounts", database="", path="/d/a.sql", size_bytes=1, sha256=ZEROS),
        )
        ended = NIGHT + timedelta(days=day)
        write_model(folder / "manifest.json", night_manifest(ended, client=client, flavour="aa", dumps=dumps, **sums))

    def image(self, folder: Path, flavour: str, day: int) -> ImageManifest:
        made = image_manifest(NIGHT + timedelta(days=day), flavour=flavour)
        (folder / made.id).mkdir(parents=True)
        (folder / made.id / "domain.xml").write_text(XML)
        write_model(folder / made.id / "manifest.json", made)
        return made


DATABASES = {"databases": [{"engine": "postgresql"}]}


def test_runbook_takes_the_newest_night_and_the_newest_image_of_its_layout(tmp_path: Path) -> None:
    found = gather(Site(tmp_path, **DATABASES).stores, Wish("web1", host="kvm2"), NIGHT)
    assert (found.night_name, found.night_place) == ("overnight", Place("STORE", "overnight/web1"))
    assert found.image_place == Place("STORE", "images/kvm1/web1/20261103T020000Z")
    assert found.facts is not None
    assert found.facts.file_systems[0].uuid == "uuid-1"
    assert (found.host.address, found.disks[0][1]) == ("kvm2.example.org", "/var/lib/libvirt/images/x.qcow2")
    assert [one.what for one in found.restores] == ["postgresql accounts", "postgresql shop"]


@pytest.mark.parametrize("lost", [False, True])
def test_of_the_permanent_store_alone_nothing_else_is_named(tmp_path: Path, lost: bool) -> None:
    site = Site(tmp_path)
    if lost:
        site.store.root.rename(tmp_path / "lost")
    path = keep(site.stores, "web1", NIGHT)
    assert path == site.far / "_runbooks/web1.sh"
    text = path.read_text()
    assert 'IMAGE="$PERMANENT"/_images/kvm1/web1/20261102T020000Z\nNIGHT="$PERMANENT"/web1/daily.0\n' in text
    assert str(site.store.root) not in text
    assert "uuid-0" in text
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_night_of_another_engine_is_brought_by_its_own_command(tmp_path: Path) -> None:
    site = Site(tmp_path, policy="vault")
    there = site.far / "web1/daily.0/manifest.json"
    (site.far / "web1/.nights").mkdir()
    there.rename(site.far / "web1/.nights/20261102T020000Z.json")
    found = gather(site.stores, Wish("web1", "daily.0"), NIGHT)
    assert found.night_place is None
    assert found.bringing is not None
    assert found.bringing.argv == ("vault", "get", "web1/20261102T020000Z", f"--into={TARGET}")
    assert found.bringing.environment_file == str(tmp_path / "vault.env")
    assert found.facts is not None, "those of the overnight copy, which has the same layout"
    text = render(found)
    assert "NOT DONE HERE: the dumps of postgresql in /d are not loaded" in text
    assert '    vault get web1/20261102T020000Z --into="$NIGHT"\n' in text


def test_what_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with pytest.raises(UnknownName):
        gather(site.stores, Wish("nosuch"), NIGHT)
    with pytest.raises(UnknownName):
        gather(site.stores, Wish("web1", host="kvm9"), NIGHT)
    with pytest.raises(NothingToRecover):
        gather(site.stores, Wish("web1", "daily.7"), NIGHT)
    (site.far / ".gbs-store").unlink()
    assert gather(site.stores, Wish("web1"), NIGHT).night_name == "overnight"
    with pytest.raises(StoreNotMounted):
        gather(site.stores, Wish("web1", permanent=True), NIGHT)


@pytest.mark.parametrize(("far", "take"), [(False, "gbs-kvmimg-get web1"), (True, "gbs run replicate")])
def test_runbook_without_an_image_of_the_vm_says_what_it_needs(tmp_path: Path, far: bool, take: str) -> None:
    site = Site(tmp_path)
    shutil.rmtree(site.far / "_images" if far else site.store.root / "images")
    words = f"a runbook begins with an image of the VM itself, .* has none; take one: {take}; .*gbs recover vm web1"
    with pytest.raises(NothingToRecover, match=words):
        gather(site.stores, Wish("web1", permanent=far), NIGHT)


def test_plan_is_printed_without_prefect() -> None:
    script = "import sys, flows.cli.plan; print([name for name in sys.modules if name.startswith('prefect')])"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"
