"""Where a VM goes when it is brought back and as whom, how long that takes, and what is said of it before."""

import subprocess
import types
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.drivers import recovery_files, recovery_put
from tasks.drivers.digest import sha256_file
from tasks.drivers.host_files import boot_id
from tasks.drivers.host_shell import LocalShell
from tasks.drivers.recovery_put import Ledger
from tasks.drivers.store import Store
from tasks.errors import CommandFailed, ConfigError, IntegrityError
from tasks.model.assessment import Assessment, Expected, Finding, Work, expect
from tasks.model.assessment_words import markdown, rows
from tasks.model.domain_xml import parse_domain
from tasks.model.manifest import DiskRecord, FileRecord, VmParts
from tasks.model.recovery import Recovered, Sources, Step, place_of, working_disks
from tasks.model.recovery_plan import ISOLATED, Order, Place, Plan, Pool, identity_of, parse_networks, plan_of
from tasks.model.recovery_record import PutFile, record_of
from tests.unit.records import NIGHT, ZEROS, image_manifest, night_manifest, pulled_image

UUID = "90a82260-1496-49c7-872c-574b9ce0acc3"
CARDS = """<interface type='network'><source network='default'/><mac address='52:54:00:AA:00:01'/></interface>
<interface type='bridge'><source bridge='br0'/><mac address='52:54:00:aa:00:02'/></interface>
<interface type='user'/>"""


def definition(uuid: str = UUID) -> str:
    system = "<os><type arch='x86_64' machine='pc'>hvm</type></os>"
    return f"<domain type='kvm'><name>web1</name><uuid>{uuid}</uuid>{system}<devices>{CARDS}</devices></domain>"


def sources(*disks: DiskRecord, parts: VmParts | None = None, uuid: str = UUID) -> Sources:
    parts = parts or VmParts()
    names = [*(disk.file for disk in disks), *parts.all_files]
    files = tuple(FileRecord(path=name, size_bytes=1, sha256=ZEROS) for name in names)
    return Sources(
        vm="web1",
        client="web1",
        kvm_host="kvm1",
        xml=definition(uuid),
        image_folder=Path("/store/image"),
        image=image_manifest(disks=disks, parts=parts, files=files),
        night_name="overnight",
        night_folder=None,
        night=night_manifest(),
    )


def test_start_that_is_cut_off_has_set_autostart_and_noted_that_somebody_may_use_the_vm(tmp_path: Path) -> None:
    ledger = Ledger(Store(tmp_path), "kvm1", UUID)
    ledger.write(record_of(planned(), "run1", "web1", "image", "night"))
    seen = list[Any]()

    def create() -> None:
        raise KeyboardInterrupt

    def autostarts(on: int) -> None:
        assert ledger.read().started, "its host may start it by itself from now on"  # type: ignore[union-attr]
        seen.append(on)

    handle = types.SimpleNamespace(isActive=lambda: 0, create=create, setAutostart=autostarts)
    domain = types.SimpleNamespace(call=lambda _, function: function(handle))
    host: Any = types.SimpleNamespace(
        call=lambda *_, **__: None, find_uuid=lambda _: None, define=lambda *_: None, domain=lambda _: domain
    )
    with pytest.raises(KeyboardInterrupt):
        recovery_put.define_and_start(host, ledger, "<domain/>", [], autostart=True)
    assert seen == [1]


def planned(
    *disks: DiskRecord, pools: dict[str, Pool] | None = None, parts: VmParts | None = None, **order: Any
) -> Plan:
    return plan_of(sources(*disks, parts=parts), Order(**{"kvm_host": "kvm1", **order}), "/images", pools or {})


def record(**more: object) -> DiskRecord:
    common = {"target": "vda", "file": "vda.raw", "format": "raw", "source": "/data/web1.qcow2"}
    return DiskRecord.model_validate({**common, "virtual_size_bytes": 1, **more})


@pytest.mark.parametrize(
    ("kind", "same_host", "place"),
    [
        ("file", True, "/data/web1.qcow2"),
        ("file", False, "/images/web1.qcow2"),
        ("block", True, "/images/web-1-vda.raw"),
        ("block", False, "/images/web-1-vda.raw"),
    ],
)
def test_disk_goes_back_to_its_file_and_never_to_a_device(kind: str, same_host: bool, place: str) -> None:
    assert place_of(record(source_kind=kind), "web-1", "/images", same_host=same_host) == place


def test_working_copy_has_the_format_that_the_disk_had_on_its_host() -> None:
    image = pulled_image(disks=(record(source_format="qcow2", options=("cluster_size=131072",)),))
    (disk,) = working_disks(image)
    assert (disk.format, disk.file, disk.options) == ("qcow2", "vda.qcow2", ("cluster_size=131072",))


POOL = {"fast": Pool(name="fast", active=True, folder="/pool"), "lv": Pool(name="lv", active=True, folder=None)}


@pytest.mark.parametrize(
    ("volume", "order", "path", "becomes"),
    [
        ("fast/web1.qcow2", {}, "/pool/web1.qcow2", "fast/web1.qcow2"),
        ("fast/web1.qcow2", {"kvm_host": "kvm2"}, "/pool/web1.qcow2", "fast/web1.qcow2"),
        ("fast/web1.qcow2", {"as_name": "web 2"}, "/pool/web-2-88f3e977-vda.raw", "fast/web-2-88f3e977-vda.raw"),
        ("fast/../../etc/x", {}, "/pool/web1-vda.raw", "fast/web1-vda.raw"),
        ("lv/web1", {}, "/data/web1.qcow2", ""),
        ("", {"as_name": "web2"}, "/data/web2-vda.raw", ""),
        ("", {"as_name": "web2", "kvm_host": "kvm2"}, "/images/web2-vda.raw", ""),
    ],
)
def test_volume_goes_back_into_its_pool_and_a_second_vm_has_names_of_its_own(
    volume: str, order: dict[str, Any], path: str, becomes: str
) -> None:
    (place,) = planned(record(volume=volume), pools=POOL, **order).disks
    assert (place.path, place.volume) == (path, becomes)


@pytest.mark.parametrize("kvm_host", ["kvm1", "kvm2"])
def test_disks_of_one_name_from_several_folders_do_not_meet(kvm_host: str) -> None:
    disks = [
        record(target=f"vd{letter}", file=f"vd{letter}.raw", source=source, volume=volume)
        for letter, source, volume in (
            ("a", "/a/disk.qcow2", ""),
            ("b", "/b/disk.qcow2", ""),
            ("c", "/pool/disk.qcow2", ""),
            ("d", "/pool/disk.qcow2", "fast/disk.qcow2"),
            ("e", "/b/data.qcow2", ""),
        )
    ]
    there = planned(*disks, pools=POOL, kvm_host=kvm_host).disks
    assert len({place.path for place in there}) == 5
    paths = {place.role: place.path for place in there}
    folder = {"kvm1": "/pool", "kvm2": "/images"}[kvm_host]
    assert paths["vdc"] == f"{folder}/web1-vdc.raw"
    assert there[3].path == f"/pool/{there[3].volume.removeprefix('fast/')}"
    assert paths["vde"].endswith("/data.qcow2"), "its own name where that is free"


def test_two_files_for_one_place_are_refused() -> None:
    sources = {"vda": "/a/disk.raw", "vdb": "/b/disk.raw", "vdc": "/c/web1-vda.raw"}
    disks = [record(target=target, file=f"{target}.raw", source=path) for target, path in sources.items()]
    with pytest.raises(ConfigError, match="vda and vdc of the VM would be one file"):
        planned(*disks, kvm_host="kvm2")


def test_parts_of_the_image_go_where_no_definition_says() -> None:
    parts = VmParts(files={"nvram": "nvram", "kernel": "kernel"}, sources={"nvram": "/etc/passwd"}, tpm_state="tpm.tar")
    found = {place.role: place.path for place in planned(record(), parts=parts).parts}
    assert found == {
        "nvram": "/var/lib/libvirt/qemu/nvram/web1_VARS.fd",
        "kernel": "/images/web1-kernel",
        "tpm": f"/var/lib/libvirt/swtpm/{UUID}",
    }
    (nvram, *_) = planned(record(), parts=parts, as_name="web 2").parts
    assert nvram.path == "/var/lib/libvirt/qemu/nvram/web 2_VARS.fd", "libvirt looks by the very name"
    with pytest.raises(ConfigError, match="not a UUID"):
        plan_of(sources(record(), uuid="../../etc"), Order(kvm_host="kvm1"), "/images", {})


def test_second_vm_has_another_identity_and_always_the_same() -> None:
    domain = parse_domain(definition())
    first, second, third = (identity_of(domain, name) for name in ("web2", "web2", "web3"))
    assert first == second
    assert len({UUID, first.uuid, third.uuid}) == 3
    assert set(first.macs) == {"52:54:00:aa:00:01", "52:54:00:aa:00:02"}
    assert len({*first.macs.values(), *third.macs.values()}) == 4
    assert all(int(mac[:2], 16) & 3 == 2 for mac in first.macs.values()), "locally administered, unicast"
    assert identity_of(domain, None).macs == {}
    for name in ("web1", " ", "a/b", "a\nb"):
        with pytest.raises(ConfigError, match="not a name"):
            identity_of(domain, name)


@pytest.mark.parametrize(
    ("order", "networks"),
    [
        ({}, None),
        ({"isolated": True}, dict.fromkeys(("default", "br0", "user"), f"network:{ISOLATED}")),
        (
            {"networks": parse_networks(["br0=lan"])},
            {"default": "network:default", "br0": "network:lan", "user": "user"},
        ),
        ({"networks": parse_networks(["br0=bridge:br1", "default=none", "user=none"])}, {"br0": "bridge:br1"}),
    ],
)
def test_network_cards_go_where_the_operator_says(order: dict[str, Any], networks: dict[str, str] | None) -> None:
    assert planned(record(), **order).networks == networks


@pytest.mark.parametrize(
    ("order", "reached"),
    [
        ({}, True),
        ({"networks": parse_networks(["br0=none"])}, True),
        ({"networks": parse_networks(["br0=none", "default=none", "user=none"])}, False),
        ({"isolated": True}, False),
        ({"as_name": "web2"}, False),
    ],
)
def test_vm_without_a_link_or_apart_is_not_reached_at_its_clients_address(order: dict[str, Any], reached: bool) -> None:
    assert planned(record(), **order).reached is reached


def test_vm_whose_only_card_has_no_counterpart_is_not_reached() -> None:
    """A card on a device of the old host comes back with its link down."""
    given = sources(record())
    card = "<interface type='direct'><source dev='eth0'/><mac address='52:54:00:aa:00:01'/></interface>"
    given = given.model_copy(update={"xml": given.xml.replace(CARDS, card)})
    assert not plan_of(given, Order(kvm_host="kvm1"), "/images", {}).reached


@pytest.mark.parametrize("word", ["br0", "=lan", "br0=", "br0=ethernet:x", "br0=bridge:"])
def test_network_that_is_no_mapping_is_an_error(word: str) -> None:
    with pytest.raises(ConfigError, match="OLD=NEW"):
        parse_networks([word])
    with pytest.raises(ConfigError, match="its network cards are on: br0, default, user"):
        planned(record(), networks={"nosuch": "user"})


def recovered(vm: str, kvm_host: str, *steps: Step) -> Recovered:
    common: dict[str, Any] = {"image": "i", "night": "n", "disks": (), "databases": (), "probes": (), "dropped": ()}
    return Recovered(vm=vm, name=vm, uuid=UUID, kvm_host=kvm_host, steps=steps, bytes_moved=0, **common)


def test_time_is_expected_by_what_was_measured_and_else_unknown() -> None:
    work = Work(vm="web1", kvm_host="kvm1", read_bytes=300, send_bytes=1000, databases=False, probes=False)
    unknown = expect(work, [])
    assert [step.seconds for step in unknown] == [None] * 4
    assert expect(work.model_copy(update={"copied_bytes_s": 100.0}), [])[1].seconds == 10
    past = [
        recovered("db1", "kvm1", Step(name="send disks", seconds=10, bytes_moved=2000)),
        recovered("web1", "kvm2", Step(name="send disks", seconds=1, bytes_moved=2000)),
        recovered("web1", "kvm1", Step(name="wait for the guest", seconds=40)),
        recovered("web1", "kvm1", Step(name="wait for the guest", seconds=60)),
    ]
    found = {step.step: step for step in expect(work, past)}
    assert found["send disks"].seconds == 5
    assert found["send disks"].by == "1 recoveries of other VMs to kvm1, 0.0 MiB/s"
    assert found["wait for the guest"].seconds == 50
    assert found["update image with files"].seconds is None


def test_assessment_says_age_time_and_what_refuses_in_one_table() -> None:
    parts = VmParts(files={"nvram": "nvram"})
    assessment = Assessment(
        vm="web1",
        plan=planned(record(volume="fast/a|b"), pools=POOL, parts=parts, as_name="web2"),
        assessed=NIGHT + timedelta(hours=30),
        image="20261102T020000Z",
        image_instant=NIGHT,
        night="20261102T020000Z",
        night_name="daily.0",
        night_ended=NIGHT + timedelta(hours=6),
        definition="kvm1",
        definition_ended=None,
        databases=("postgresql shop",),
        findings=(
            Finding(verdict="refused", subject="name", reason="taken", fix="rename it"),
            Finding(verdict="missing", subject="TPM", reason="none"),
        ),
        expected=(
            Expected(step="send disks", seconds=90, by="1 recoveries"),
            Expected(step="probe", seconds=None, by="unknown"),
        ),
    )
    table = rows(assessment)
    for row in (
        ("image", "20261102T020000Z", "1 d 6 h old"),
        ("files of night", "daily.0 (20261102T020000Z)", "1 d old"),
        ("takes", "send disks", "1 min 30 s (1 recoveries)"),
        ("takes", "all of it", "1 min 30 s, and the unknown: probe"),
        ("REFUSED", "name", "taken; rename it"),
    ):
        assert row in table
    assert table[-1][0] == "REFUSED"
    lines = markdown(assessment).splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines} == {4}
    assert Assessment.model_validate_json(assessment.model_dump_json()) == assessment


class _Sent:
    def __init__(self) -> None:
        self.sent: list[str] = []

    def __call__(self, source: Path, path: str) -> int:
        self.sent.append(path)
        subprocess.run(["cp", source, path], check=True)
        return source.stat().st_size


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """The record of a recovery that begins, of one disk to tmp_path/there."""
    plan = planned(record())
    place = Place(role="vda", file="vda.raw", path=str(tmp_path / "there"))
    kept = Ledger(Store(tmp_path / "store"), "kvm1", UUID)
    kept.write(record_of(plan.model_copy(update={"disks": (place,)}), "run-1", "web1", "image", "night"))
    return kept


def put(ledger: Ledger, source: Path, send: _Sent, sha256: str = "", boot: str | None = None) -> None:
    record = ledger.read()
    assert record is not None
    place = Place(role="vda", file="vda.raw", path=record.files[0].path)
    sha256 = sha256 or sha256_file(source)
    recovery_put.place_file(LocalShell(), ledger, place, source, sha256, send, boot_id=boot)


def test_disk_that_the_host_sees_is_linked_and_any_other_is_sent_and_proven(ledger: Ledger, tmp_path: Path) -> None:
    source, there, send = tmp_path / "-it's a disk", tmp_path / "there", _Sent()
    source.write_bytes(b"disk")
    with pytest.raises(IntegrityError, match="run-1"):
        put(ledger, source, send, sha256=ZEROS)
    assert not there.exists()
    put(ledger, source, send, boot="another boot, so another machine")
    assert there.read_bytes() == b"disk"
    assert len(send.sent) == 2
    put(ledger, source, send)
    assert len(send.sent) == 2, "it was there already: a retry of ours does it once"
    there.unlink()
    put(ledger, source, send, boot=boot_id(LocalShell()))
    assert there.samefile(source)
    assert len(send.sent) == 2
    there.unlink()
    there.write_bytes(b"somebody's")
    with pytest.raises(CommandFailed, match="File exists"):
        put(ledger, source, send)
    assert there.read_bytes() == b"somebody's"


def test_clear_takes_what_was_under_way_and_its_own_and_nothing_else(ledger: Ledger, tmp_path: Path) -> None:
    host: Any = types.SimpleNamespace(find_uuid=lambda _: None, domains=list)
    source, there = tmp_path / "source", tmp_path / "there"
    source.write_bytes(b"disk")
    kept = [tmp_path / name for name in (".there.gbs-partial-run-2.Ab12Cd", "there.gbs-partial-run-2", "source")]
    for path in kept:
        path.touch()
    for name in (".there.gbs-partial-run-1.Ab12Cd", "there.gbs-partial-run-1", "there"):
        (tmp_path / name).touch()
    record = ledger.read()
    assert record is not None
    (found,) = recovery_files.identify(LocalShell(), [str(there)])
    assert found is not None
    ledger.write(record.noting("vda", found))
    assert recovery_put.clear(host, LocalShell(), ledger) == [str(there)]
    assert {path for path in tmp_path.iterdir() if path.is_file()} == set(kept)
    assert ledger.read() is None
    assert recovery_put.clear(host, LocalShell(), ledger) == []


def test_file_that_got_the_inode_of_ours_is_not_ours(tmp_path: Path) -> None:
    """A file system gives an inode again: told by when the file was made, else by its device."""
    path = tmp_path / "there"
    path.touch()
    (found,) = recovery_files.identify(LocalShell(), [str(path)])
    assert found is not None
    stat = path.stat()
    assert (found.device, found.inode) == (stat.st_dev, stat.st_ino)
    ours = PutFile(role="vda", path=str(path), **found._asdict())
    assert recovery_files.own(LocalShell(), [ours]) == [ours]
    assert found.born, "this file system knows when a file was made"
    assert not ours.is_it(found._replace(born="1700000000.000000001"))
    assert ours.is_it(found._replace(device=7)), "another number after a boot"
    unborn = found._replace(born="")
    assert ours.is_it(unborn)
    assert not ours.is_it(unborn._replace(device=7))
    assert not PutFile(role="vda", path=str(path), inode=found.inode).is_it(unborn), "it cannot be told"
    assert not PutFile(role="vda", path=str(path)).is_it(found)
    assert recovery_files.identify(LocalShell(), [str(tmp_path / "no"), str(path / "no")]) == [None, None]
