"""A VM without an image, and a physical client, are rebuilt from a template; what runs in the appliance is faked."""

import contextlib
import shutil
import types
from typing import Any

import pytest

from flows.kvmimg_update import choose_physical
from flows.kvmimg_update import kvmimg_update as kvmimg_update_flow
from flows.nightly import nightly as nightly_flow
from flows.recover_physical import recover_physical as recover_physical_flow
from flows.recover_vm import recover_vm as recover_vm_flow
from flows.template_add import template_add as template_add_flow
from tasks.drivers import adoption, appliance, libvirt_host, recovery_put
from tasks.drivers.adoption import Bootable
from tasks.drivers.appliance import DiskFile, UpdateResult
from tasks.drivers.store import Store, read_model, verify_image, write_model
from tasks.errors import ConfigError, NothingToRecover, RecoveryRefused, UnknownName
from tasks.model.domain_xml import parse_domain
from tasks.model.facts import Facts
from tasks.model.manifest import MANIFEST, ImageManifest
from tasks.model.outcome import Outcome
from tasks.model.physical_definition import Machine
from tasks.model.recovery import place_of
from tasks.model.shape import shape_of_facts
from tests.flows.fake_site import FakeSite
from tests.flows.test_recovery import Target, target  # noqa: F401 - a fixture

nightly: Any = nightly_flow
kvmimg_update: Any = kvmimg_update_flow
recover_physical: Any = recover_physical_flow
recover_vm: Any = recover_vm_flow
template_add: Any = template_add_flow


@pytest.fixture
def in_appliance(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the appliance was asked for, in order."""
    asked = list[str]()

    def shape_of(*_: object, **__: object) -> Any:
        facts = read_model(site.store / "overnight/web1/facts.json", Facts)
        assert facts is not None
        return shape_of_facts(facts)

    def adopt(disks: list[DiskFile], *_: object, **__: object) -> None:
        assert all(disk.path.exists() for disk in disks)
        asked.append("adopt")

    def update(*_: object, **__: object) -> UpdateResult:
        asked.append("update")
        return UpdateResult(0, 0, 0, 1.0, 1.0)

    def make_bootable(*_: object, **__: object) -> Bootable:
        asked.append("make bootable")
        return Bootable(("GRUB was written",), ())

    monkeypatch.setattr(appliance, "shape_of", shape_of)
    monkeypatch.setattr(appliance, "update_files", update)
    monkeypatch.setattr(adoption, "adopt", adopt)
    monkeypatch.setattr(adoption, "make_bootable", make_bootable)
    return asked


def test_a_vm_without_an_image_is_rebuilt_from_a_template(site: FakeSite, in_appliance: list[str]) -> None:
    nightly(["kvm1", "web1"])
    assert kvmimg_update("web1").outcome is Outcome.OK
    shutil.rmtree(site.store / "recovery")
    flavour = template_add("web1").flavour
    shutil.rmtree(site.store / "images")
    in_appliance.clear()
    updated = kvmimg_update("web1")
    assert in_appliance == ["adopt", "update", "make bootable"]
    assert updated.outcome is Outcome.WARNING
    assert updated.warnings[0].endswith(f"of flavour {flavour}")
    assert updated.warnings[1] == "GRUB was written"
    assert (updated.folder / "vda.raw").exists()
    (folder,) = (site.store / "templates").glob("*/*")
    image = read_model(folder / MANIFEST, ImageManifest)
    assert image is not None
    verify_image(folder, image)


def test_a_template_can_be_asked_for_and_one_that_is_not_there_is_named(
    site: FakeSite, in_appliance: list[str]
) -> None:
    nightly(["kvm1", "web1"])
    template_add("web1")
    assert kvmimg_update("web1", template="any").warnings
    with pytest.raises(UnknownName, match="no template named 'db1/1': known are web1/"):
        kvmimg_update("web1", template="db1/1")


def test_without_image_and_template_both_are_said(site: FakeSite, in_appliance: list[str]) -> None:
    nightly(["kvm1", "web1"])
    shutil.rmtree(site.store / "images")
    with pytest.raises(NothingToRecover, match=r"run: gbs-kvmimg-get web1.*; .*gbs image template add"):
        kvmimg_update("web1")


def test_an_image_that_was_asked_for_never_becomes_a_template(site: FakeSite, in_appliance: list[str]) -> None:
    nightly(["kvm1", "web1"])
    template_add("web1")
    (path,) = (site.store / "images").glob(f"*/*/*/{MANIFEST}")
    image = read_model(path, ImageManifest)
    assert image is not None
    write_model(path, image.model_copy(update={"flavour": "of-other-disks"}))
    in_appliance.clear()
    with pytest.raises(NothingToRecover, match=f"the images have others: {image.id} .of-other-disks"):
        kvmimg_update("web1", image=image.id)
    with pytest.raises(ConfigError, match="an image and a template were asked for"):
        kvmimg_update("web1", image=image.id, template="any")
    shutil.rmtree(site.store / "images")
    with pytest.raises(UnknownName, match=f"no image named '{image.id}': known are none"):
        kvmimg_update("web1", image=image.id)
    assert in_appliance == []


def test_a_physical_client_gets_a_definition_and_a_place(site: FakeSite, in_appliance: list[str]) -> None:
    nightly(["kvm1", "web1", "db1"])
    template_add("web1")
    sources = choose_physical("db1", "latest", "kvm1", Machine("bridge:br0", 1 << 30, 2))
    domain = parse_domain(sources.xml)
    assert (domain.name, domain.disks[0].target, sources.kvm_host) == ("db1", "vda", "kvm1")
    path = place_of(sources.image.disks[0], "db1", "/var/lib/libvirt/images", same_host=True)
    assert path == domain.disks[0].source
    assert Store(site.store).night_of("db1") is not None
    with pytest.raises(RecoveryRefused, match="--memory"):
        choose_physical("db1", "latest", "kvm1", Machine("bridge:br0"))


def test_a_vm_rebuilt_from_a_template_can_come_back_beside_the_one_that_answers(
    site: FakeSite,
    in_appliance: list[str],
    target: Target,  # noqa: F811
) -> None:
    template_add("web1")
    shutil.rmtree(site.store / "images")
    site.answering = {"web1"}
    with pytest.raises(RecoveryRefused, match=r"web1 still answers at its address: .*: --isolated or --as$"):
        recover_vm("web1")
    assert recover_vm("web1", as_name="web2", dry_run=True).refusals == ()


def test_a_physical_client_comes_back_as_a_vm_and_not_while_it_answers(
    site: FakeSite,
    in_appliance: list[str],
    target: Target,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nightly(["db1"])
    template_add("web1")
    running = types.SimpleNamespace(call=lambda *_, **__: True)
    host = types.SimpleNamespace(name="kvm1", domain=lambda _: running)
    monkeypatch.setattr(libvirt_host, "connect", lambda *_: contextlib.nullcontext(host))
    monkeypatch.setattr(recovery_put, "isolate", lambda *_: target.done.append("isolate"))
    asked = {"to": "kvm1", "network": "bridge:br0", "memory_mib": 1024, "processors": 2}
    site.answering = {"db1"}
    with pytest.raises(RecoveryRefused, match=r"db1 still answers at its address: switch it off.*: --isolated$"):
        recover_physical("db1", **asked)
    site.answering = set()
    with pytest.raises(RecoveryRefused, match="gbs recover vm web1"):
        recover_physical("web1", **asked)
    assert recover_physical("db1", **asked, isolated=True, dry_run=True).plan.identity.name == "db1"
    assert target.done == []
    in_appliance.clear()
    warnings = recover_physical("db1", **asked, isolated=True).warnings
    assert warnings[0].startswith("rebuilt from template web1/")
    assert warnings[1] == "GRUB was written"
    assert in_appliance == ["adopt", "make bootable"]
    assert target.done == ["place vda", "isolate", "start"]
    assert "<name>db1</name>" in target.xml
