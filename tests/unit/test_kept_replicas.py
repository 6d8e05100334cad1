"""The replicas of a VM's images: one small file of theirs that is damaged stops nothing and gives nothing up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.drivers import kept_replicas, permanent, restore_points
from tasks.drivers.store import Store, write_model
from tasks.errors import GbsError, IntegrityError
from tasks.model.inventory import Inventory
from tasks.model.names import new_id
from tasks.model.replica_retention import Verdict
from tasks.model.verify_choice import noted
from tests.unit.records import NIGHT, image_manifest

NOW = datetime(2027, 1, 1, tzinfo=UTC)
VENDOR = {
    "backup": ["vault", "put", "{source}", "{night}"],
    "list": ["false"],
    "restore": ["vault", "get", "{client}/{night}", "--into={target}"],
}


class Site:
    """A VM with images in the store, and replicas of some of them."""

    def __init__(self, folder: Path, engine: str = "rsnapshot") -> None:
        key = {"private_key_file": "/etc/gbs/key", "known_hosts_file": "/etc/gbs/known_hosts"}
        self.declared = Inventory.model_validate(
            {
                "store": {"path": str(folder / "store")},
                "permanent": {"path": str(folder / "far"), "store_id": "far", "kind": "local"},
                "identities": {"default": key},
                "engines": {"vault": {"command": {**VENDOR, "environment_file": str(folder / "vault.env")}}},
                "policies": {"few": {"engine": engine, "image_replicas": 1}},
                "kvm_hosts": {"kvm1": "kvm1.example.org"},
                "clients": {"web1": {"address": "web1.example.org", "vm": "web1", "policy": "few"}},
            }
        )
        self.store, self.far = Store(folder / "store"), folder / "far"
        self.place = permanent.place_of(self.declared.permanent)
        self.replicas = self.far / "_images/kvm1/web1"
        self.replicas.mkdir(parents=True)
        (self.far / "web1").mkdir()
        (folder / "vault.env").touch(0o600)
        (self.far / ".gbs-store").write_text("far\n")

    def image(self, day: int, *, replica: bool = True) -> str:
        made = NIGHT + timedelta(days=day)
        for folder in (self.store.root / "images/kvm1/web1", *([self.replicas] if replica else [])):
            write_model(folder / new_id(made) / "manifest.json", image_manifest(made))
        return new_id(made)

    def verdicts(self, *, wanted: bool = True) -> dict[str, Verdict]:
        found = kept_replicas.verdicts(self.declared, self.store, self.place, "web1", NOW, wanted=wanted)
        return {one.replica.id: one for one in found}


def test_while_pins_of_images_cannot_be_read_replicas_are_made_and_none_is_given_up(tmp_path: Path) -> None:
    site = Site(tmp_path)
    old, new, newest = site.image(0), site.image(1), site.image(2, replica=False)
    assert [one.stays for one in site.verdicts().values()] == [True, False, False]
    (site.replicas / restore_points.PINS).write_text("{")
    there = site.verdicts()
    assert {image for image, one in there.items() if one.stays} == {old, new, newest}
    assert ".pins.json is damaged" in there[old].reason


def test_replica_whose_record_of_readings_cannot_be_read_is_not_counted_as_sound(tmp_path: Path) -> None:
    site = Site(tmp_path)
    old, new = site.image(0), site.image(1)
    place = f"_images/kvm1/web1/{new}"
    record = kept_replicas.record_of(site.store, place)
    record.parent.mkdir(parents=True)
    record.write_text("{")
    there = site.verdicts()
    assert {image for image, one in there.items() if one.stays} == {old, new}
    assert "its record cannot be read" in there[new].reason
    before = kept_replicas.read_of(site.store, place)
    assert before is not None
    for whole, count in ((False, 2), (True, 1)):
        write_model(record, noted(before, {}, [], NOW, whole=whole))
        assert sum(one.stays for one in site.verdicts().values()) == count, "a sample does not make it sound"


def test_engine_out_of_reach_stops_no_replication_and_gives_nothing_up(tmp_path: Path) -> None:
    site = Site(tmp_path, "vault")
    there = [site.image(0), site.image(1)]
    newest = site.image(2, replica=False)
    stays = {image: one.reason for image, one in site.verdicts().items() if one.stays}
    assert sorted(stays) == [*there, newest]
    assert "nights cannot be listed" in stays[there[0]]
    with pytest.raises(GbsError):
        site.verdicts(wanted=False)


def test_pins_of_one_kvm_host_that_cannot_be_read_keep_no_trash_of_another(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (site.replicas / restore_points.PINS).write_text("{")
    trash = site.far / "_images/kvm2/web1/.trash-2020-01-01-20191228T020000Z-abcd"
    trash.mkdir(parents=True)
    folders = kept_replicas.folders_of(site.place, "web1")
    assert len(folders) == 2
    with pytest.raises(IntegrityError, match=r"kvm1/web1/\.pins\.json is damaged"):
        kept_replicas.give_up(site.place, [], folders, NOW.date())
    assert not trash.exists()
