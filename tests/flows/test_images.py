"""Images of VMs: when they are taken, that their window always closes, and who may not work on a VM now."""

from typing import Any

import pytest

from flows import reconcile as reconcile_module
from flows.kvmimg_get import image_if_due, kvmimg_get
from flows.kvmsnap_create import kvmsnap_create
from flows.kvmsnap_purge import kvmsnap_purge
from flows.nightly import nightly
from flows.reconcile import reconcile
from flows.verify_images import verify_images
from tasks import catalogue, declaration, places
from tasks.errors import (
    ClientsFailed,
    HypervisorError,
    IntegrityError,
    Locked,
    NothingToRecover,
    TransferInterrupted,
    UnknownName,
    Unreachable,
    WindowOpen,
)
from tasks.model.outcome import Outcome
from tasks.model.window import Step
from tasks.model.window_decision import Power
from tests.flows.fake_site import DISK_BYTES, UUID, FakeSite


@pytest.fixture(autouse=True)
def _host_is_backed_up(site: FakeSite) -> None:
    """The VM is found in its host's backup data."""
    from flows.overnight import pull_client
    from flows.prepare import prepare_client

    assert [*prepare_client("kvm1"), *pull_client("kvm1")][1].outcome is Outcome.OK
    site.calls.clear()


def staged(site: FakeSite) -> list[str]:
    return [path.name for path in (site.store / "images").rglob(".partial-*")]


def test_kvmimg_get_vm_runs_live_image_published(site: FakeSite) -> None:
    manifest = kvmimg_get("web1")
    assert (manifest.method, manifest.consistency, manifest.uuid) == ("snaplive", "file-system", UUID)
    folder = site.store / "images/kvm1/web1" / manifest.id
    assert sorted(path.name for path in folder.iterdir()) == [
        "domain.xml",
        "manifest.json",
        "vda.raw",
        "vda.raw.chunks",
    ]
    assert (folder / "vda.raw").stat().st_size == DISK_BYTES
    assert [verb for verb, _ in site.calls if "window" in verb or verb == "copy disk"] == [
        *("open window", "copy disk", "close window")
    ]
    assert site.journal().open_window() is None


def test_kvmimg_get_by_uuid_is_an_image_of_the_vm_of_that_name(site: FakeSite) -> None:
    image = kvmimg_get(UUID)
    assert (image.vm, image.uuid) == ("web1", UUID)
    assert [folder.name for folder, _ in places.store().images_of("web1")] == [image.id]


def test_kvmimg_get_vm_shuts_down_now_refused(site: FakeSite) -> None:
    site.power = Power.CHANGING
    with pytest.raises(HypervisorError, match="it is shutting down"):
        kvmimg_get("web1")
    assert ("open window", "web1") not in site.calls
    assert staged(site) == []


@pytest.mark.parametrize(
    ("error", "tries"),
    [(TransferInterrupted("rsync of kvm1", 30, "timeout"), 2), (ZeroDivisionError("a bug"), 1)],
    ids=["transient", "not"],
)
def test_kvmimg_get_copy_fails_window_closed_each_time(site: FakeSite, error: Exception, tries: int) -> None:
    site.fail("copy disk", "kvm1", *[error] * 9)
    with pytest.raises(type(error)):
        kvmimg_get("web1")
    work = [verb for verb, _ in site.calls if "window" in verb or verb == "copy disk"]
    assert work == ["open window", "copy disk", "close window"] * tries
    assert site.journal().open_window() is None
    assert staged(site) == []
    assert places.store().images_of("web1") == []


def test_kvmimg_get_copy_is_short_nothing_published(site: FakeSite) -> None:
    site.copied_bytes = 512
    with pytest.raises(IntegrityError, match=f"expected {DISK_BYTES} bytes, found 512 bytes"):
        kvmimg_get("web1")
    assert site.count("copy disk", "kvm1") == 1, "damage is never retried"
    assert places.store().images_of("web1") == []
    assert staged(site) == []


def test_image_if_due_image_serves_skipped(site: FakeSite) -> None:
    first = image_if_due("web1")[0]
    second = image_if_due("web1")[0]
    assert first.outcome is Outcome.OK
    assert first.produced
    assert (second.outcome, second.reasons) == (Outcome.SKIPPED, ("the image there is serves",))
    assert site.count("open window", "web1") == 1


def test_image_if_due_client_is_no_vm_nothing(site: FakeSite) -> None:
    assert image_if_due("db1") == []
    assert site.calls == []


def test_nightly_image_fails_files_are_kept_and_client_failed(site: FakeSite) -> None:
    site.fail("open window", "web1", HypervisorError("web1", "a live snapshot", "QEMU said no"))
    with pytest.raises(ClientsFailed, match="1 of 2 systems failed: web1 image: VM web1: a live snapshot failed"):
        nightly(["kvm1", "web1"])
    assert (site.permanent / "web1/daily.0").is_dir()


def test_kvmimg_get_vm_locked_by_another_run_refused(site: FakeSite) -> None:
    with places.locked("vm", UUID), pytest.raises(Locked, match=f"vm {UUID} is locked by another run: pid"):
        kvmimg_get("web1")
    assert site.calls == []


def test_kvmimg_get_unknown_vm_says_where_it_looked(site: FakeSite) -> None:
    with pytest.raises(NothingToRecover, match=r"its definition is in the backup data of none of: kvm1 \(night"):
        kvmimg_get("nosuch")
    assert site.calls == []


def test_snapshot_stays_until_purged_and_keeps_others_off(site: FakeSite) -> None:
    window = kvmsnap_create("web1")
    assert window.disks[0].target == "vda"
    with pytest.raises(WindowOpen, match="gbs-kvmsnap-purge ends it"):
        kvmimg_get("web1")
    assert reconcile() == [], "an operator's snapshot is left alone"
    assert site.count("close window", "web1") == 0
    assert [outcome.settled for outcome in kvmsnap_purge("web1")] == [True]
    assert site.journal().open_window() is None


def test_kvmsnap_purge_nothing_open_named_vm_unknown(site: FakeSite) -> None:
    assert kvmsnap_purge() == []
    with pytest.raises(UnknownName, match="no VM with snapshots of ours named 'web1'"):
        kvmsnap_purge("web1")


def test_reconcile_window_left_by_a_crash_settled_once(site: FakeSite) -> None:
    site.open_window(None, None, site.journal(), "web1", "20260101T000000Z")
    with places.locked("vm", UUID):
        assert reconcile() == [], "a run works on it now"
    assert [outcome.target for outcome in reconcile("web1")] == ["vda"]
    assert reconcile() == []


def test_reconcile_of_a_host_that_is_away_does_all_the_rest_and_is_told_at_the_end(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = {name: {"address": f"{name}.test", "paths": ["/etc"]} for name in ("kvm1", "kvm2")}
    site.declare(hosts, site.clients())
    declaration.apply(declaration.load(site.inventory))
    places.forget_blocks()
    other = UUID.replace("6d", "7d")
    plan = site.open_window(None, None, site.journal(), "web1", "20260101T000000Z").plan
    journal = places.journal("kvm2", other)
    journal.append(Step.PREPARE, plan=plan.model_copy(update={"uuid": other, "vm": "web2"}))
    did = list[Any]()
    for part in ("reconcile_instant", "reconcile_drills"):
        monkeypatch.setattr(reconcile_module, part, did.append)
    site.fail("libvirt", "kvm1", *[Unreachable("kvm1", "no route") for _ in range(9)])
    with pytest.raises(Unreachable, match="no route"):
        reconcile()
    assert did == [None, None]
    assert journal.open_window() is None
    assert site.journal().open_window() is not None


def test_kvmimg_get_window_left_by_a_crash_settled_first(site: FakeSite) -> None:
    site.open_window(None, None, site.journal(), "web1", "20260101T000000Z")
    kvmimg_get("web1")
    work = [verb for verb, _ in site.calls if "window" in verb]
    assert work == ["open window", "close window", "open window", "close window"]


def test_verify_images_whole_ok_noted_and_damage_fails_the_run(site: FakeSite) -> None:
    manifest = kvmimg_get("web1")
    results: Any = verify_images()
    (result,) = results
    assert (result.client, result.stage, result.outcome, result.produced) == ("web1", "verify", "OK", manifest.id)
    nothing: Any = verify_images(older_than_days=1)
    assert nothing == [], "it was read just now"
    disk = site.store / "images/kvm1/web1" / manifest.id / "vda.raw"
    with disk.open("r+b") as file:
        file.seek(DISK_BYTES // 2)
        file.write(b"x")
    with pytest.raises(
        ClientsFailed,
        match=r"1 of 1 systems failed: web1 verify: .*vda\.raw, chunk 0 of 4194304 bytes is damaged: expected",
    ):
        verify_images("web1")


def test_verify_images_unknown_vm_refused(site: FakeSite) -> None:
    with pytest.raises(UnknownName, match="no VM with images named 'nosuch'"):
        verify_images("nosuch")


@pytest.mark.parametrize("name", ["web1", UUID])
def test_find_vm_by_name_or_uuid_says_host_disks_and_image(site: FakeSite, name: str) -> None:
    manifest = kvmimg_get("web1")
    site.calls.clear()
    found = catalogue.find_vm(name)
    assert (found.vm, found.uuid, found.kvm_host, found.images) == ("web1", UUID, "kvm1", 1)
    assert [(disk.target, disk.source, disk.image) for disk in found.disks] == [
        ("vda", "/var/lib/libvirt/images/web1.raw", manifest.id)
    ]
    assert site.calls == [], "no host is asked"
