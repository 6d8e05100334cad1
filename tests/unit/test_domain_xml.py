"""Domain definitions: read safely, edited, rewritten for recovery (GBS_REGENERATE=1 rewrites the golden files)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.errors import ConfigError
from tasks.model.domain_recovery import rewrite_for_recovery, run_of
from tasks.model.domain_whitelist import Wishes
from tasks.model.domain_xml import MAX_BYTES, Mirror, SourceKind, names_path, parse_domain, set_disk_source

GOLDEN = Path(__file__).parent / "golden" / "domain"
UUID = "5f0b2a38-1f6e-4d6b-9a55-7f5e0e1c7c11"
HOSTILE = ["-rf", "--help", "a;b", "a$(id)", "<x>", "\"'", "a b", "]]>", "é\u202e"]


def same_as_golden(path: Path, text: str) -> None:
    if os.environ.get("GBS_REGENERATE"):
        path.write_text(text)
    assert text == path.read_text()


def read(name: str) -> str:
    return (GOLDEN / f"{name}.in.xml").read_text()


def minimal(name: str = "vm", devices: str = "") -> str:
    system = "<os><type>hvm</type></os>"
    return f"<domain type='kvm'><name>{name}</name><uuid>u</uuid>{system}<devices>{devices}</devices></domain>"


def test_parse_domain_reads_what_matters() -> None:
    domain = parse_domain(read("plain"))
    assert (domain.name, domain.uuid) == ("web1", "90a82260-1496-49c7-872c-574b9ce0acc3")
    assert (domain.type, domain.arch, domain.machine, domain.firmware) == ("kvm", "x86_64", "pc-q35-7.2", "bios")
    assert domain.guest_agent
    assert domain.macs == ("52:54:00:65:9a:7f",)
    assert domain.networks == ("default",)
    vda, sda = domain.disks
    assert (vda.target, vda.source, vda.format, vda.bus, vda.backing) == (
        "vda",
        "/var/lib/libvirt/images/web1.qcow2",
        "qcow2",
        "virtio",
        (),
    )
    assert (sda.device, sda.readonly, sda.source) == ("cdrom", True, "/isos/debian.iso")


def test_parse_domain_reads_chains_jobs_and_every_type_of_disk() -> None:
    domain = parse_domain(
        minimal(
            devices="""
    <disk type='file'><driver type='qcow2'/><source file='/b.gbs-1'/>
      <backingStore type='file'><format type='qcow2'/><source file='/b'/>
        <backingStore type='block'><source dev='/dev/x'/><backingStore/></backingStore></backingStore>
      <mirror type='file' job='active-commit' ready='yes'><source file='/b'/></mirror>
      <target dev='vda'/><shareable/><transient/></disk>
    <disk type='block' device='lun'><source dev='/dev/y'/><target dev='sda'/></disk>
    <disk type='network'><source protocol='rbd' name='pool/img'/><target dev='vdb'/></disk>
    <disk type='volume'><source pool='p' volume='v'><encryption format='luks'/></source><target dev='vdc'/></disk>
    <disk type='file' device='cdrom'><target dev='sdb'/></disk>"""
        )
    )
    vda, sda, vdb, vdc, sdb = domain.disks
    assert vda.backing == ("/b", "/dev/x")
    assert vda.mirror == Mirror("active-commit", True, "/b")
    assert vda.shareable
    assert vda.transient
    assert (sda.type, sda.device, sda.source) == ("block", "lun", "/dev/y")
    assert (vdb.type, vdb.source) == ("network", "pool/img")
    assert (vdc.source, vdc.encrypted) == ("p/v", True)
    assert sdb.source is None
    assert domain.disk("vdb") is vdb
    assert domain.disk("vdz") is None


def test_parse_domain_tells_uefi_and_tpm() -> None:
    domain = parse_domain(read("hostile"))
    assert domain.firmware == "efi"
    assert domain.nvram == "/etc/passwd"
    assert domain.tpm
    assert domain.name == "-rf; $(id) <x> \"'"


BILLION = "<!DOCTYPE d [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]>"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "malformed"),
        ("<domain", "malformed"),
        ("<domain>\x00</domain>", "malformed"),
        ("<domain>\ud800</domain>", "malformed"),
        ("<domain>&nbsp;</domain>", "malformed"),
        ("<network/>", "not a domain"),
        ("<domain/>", "incomplete"),
        ("<domain><name>x</name></domain>", "uuid"),
        (BILLION + "<domain><name>&b;</name></domain>", "document type"),
        ('<!DOCTYPE d SYSTEM "file:///etc/passwd"><domain/>', "document type"),
        ('<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><domain>&x;</domain>', "document type"),
        ("<domain>" + "<a>" * 100 + "</a>" * 100 + "</domain>", "too deep"),
        ("<domain>" + "<a>" * 100000, "too deep"),
        ("<domain>" + "x" * MAX_BYTES, "too large"),
        (minimal(devices="<disk/>"), "no target"),
        (minimal(devices="<disk><target dev=''/></disk>"), "no target"),
    ],
)
def test_parse_domain_refuses_bad_input(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_domain(text)


def test_parse_domain_of_a_vm_without_disks_is_no_error() -> None:
    assert parse_domain(minimal()).disks == ()


@pytest.mark.parametrize("name", HOSTILE)
def test_set_disk_source_changes_nothing_but_the_disk(name: str) -> None:
    before = read("plain").replace("<source file='/var/lib/libvirt/images/web1.qcow2' index='1'/>", "@")
    changed = set_disk_source(read("plain"), "vda", "file", f"/images/{name}", "raw")
    disk = parse_domain(changed).disk("vda")
    assert disk is not None
    assert (disk.source, disk.format, disk.backing) == (f"/images/{name}", "raw", ())
    again = set_disk_source(changed, "vda", "file", "/var/lib/libvirt/images/web1.qcow2", "qcow2")
    assert parse_domain(again) == parse_domain(read("plain"))
    assert before.count("<disk") == again.count("<disk")
    assert "hunter2" in changed


def test_set_disk_source_drops_the_chain_and_makes_a_missing_source() -> None:
    chain = "<backingStore type='file'><source file='/b'/></backingStore>"
    text = minimal(devices=f"<!-- kept --><disk type='block'>{chain}<target dev='vda'/></disk>")
    changed = set_disk_source(text, "vda", "file", "/new", "qcow2")
    disk = parse_domain(changed).disk("vda")
    assert disk is not None
    assert (disk.type, disk.source, disk.format, disk.backing) == ("file", "/new", "qcow2", ())
    assert "<!-- kept -->" in changed


@pytest.mark.parametrize(("kind", "source"), [("block", "/dev/vg/a"), ("volume", "pool/a.raw")])
def test_set_disk_source_puts_a_disk_back_on_a_device_or_a_volume(kind: SourceKind, source: str) -> None:
    text = minimal(devices="<disk type='file'><source file='/b' index='3'/><target dev='vda'/></disk>")
    disk = parse_domain(set_disk_source(text, "vda", kind, source, "raw")).disk("vda")
    assert disk is not None
    assert (disk.type, disk.source, disk.format) == (kind, source, "raw")


def test_set_disk_source_without_the_disk_is_an_error() -> None:
    with pytest.raises(ConfigError, match="vdz"):
        set_disk_source(read("plain"), "vdz", "file", "/x", "raw")


def test_names_path_finds_a_path_in_any_role() -> None:
    text = read("hostile")
    for path in ("/dev/sda", "/etc/passwd", "/tmp/evil", "/etc/cron.d/owned"):
        assert names_path(text, path)
    assert not names_path(text, "/etc/pass")
    assert not names_path(text, "/nowhere")


def test_recovery_of_a_plain_vm() -> None:
    rewritten = rewrite_for_recovery(
        read("plain"), Wishes({"vda": "/new/web1.qcow2"}, name="web1", uuid="90a82260-1496-49c7-872c-574b9ce0acc3")
    )
    same_as_golden(GOLDEN / "plain.out.xml", rewritten.xml)
    assert rewritten.dropped == (
        "cputune",
        "devices/disk sda (its medium and drive)",
        "devices/channel com.redhat.spice.0",
        "devices/graphics spice (is VNC on the host's loopback now)",
        "devices/sound",
        "devices/audio",
        "devices/video model qxl (is vga now)",
    )


def test_recovery_in_a_drill_has_new_identity_and_no_foreign_network() -> None:
    rewritten = rewrite_for_recovery(
        read("plain"),
        Wishes(
            {"vda": "/d"},
            name="drill-1",
            keep_macs=False,
            networks={},
            domain_type="qemu",
            emulator="/usr/bin/q",
        ),
    )
    same_as_golden(GOLDEN / "plain.drill.out.xml", rewritten.xml)
    assert "52:54:00" not in rewritten.xml
    assert "90a82260" not in rewritten.xml
    assert any("link is down" in dropped for dropped in rewritten.dropped)
    assert any("host-passthrough" in dropped for dropped in rewritten.dropped)


def test_recovery_keeps_user_networking_with_passt() -> None:
    rewritten = rewrite_for_recovery(read("lab"), Wishes({"vda": "/d"}, name="web1", domain_type="qemu"))
    same_as_golden(GOLDEN / "lab.out.xml", rewritten.xml)
    assert rewritten.dropped == ()


def test_recovery_of_a_hostile_definition_keeps_nothing_that_hurts() -> None:
    rewritten = rewrite_for_recovery(
        read("hostile"), Wishes({"vda": "/new/a.raw"}, name="-rf; $(id) <x> \"'", networks={"br0": "network:drill"})
    )
    same_as_golden(GOLDEN / "hostile.out.xml", rewritten.xml)
    text = rewritten.xml
    bad = "evil /etc /tmp owned qemu: hostdev /dev/sda secret seclabel emulator 0.0.0.0 filesystem sysinfo shmem br0"
    for word in bad.split():
        assert word not in text, word
    told = "\n".join(rewritten.dropped)
    for word in (
        "commandline",
        "hostdev",
        "filesystem",
        "os/kernel",
        "tpm",
        "shmem",
        "disk vdb",
        "UEFI",
        "serial of type file",
    ):
        assert word in told, word


def test_recovery_takes_captured_uefi_variables() -> None:
    rewritten = rewrite_for_recovery(read("hostile"), Wishes({"vda": "/a"}, name="x", nvram="/new/x_VARS.fd"))
    assert parse_domain(rewritten.xml.replace("</name>", "</name><uuid>u</uuid>")).nvram == "/new/x_VARS.fd"
    assert not any("UEFI" in dropped for dropped in rewritten.dropped)


def test_recovery_takes_what_came_back_with_the_image_and_never_what_the_definition_names() -> None:
    rewritten = rewrite_for_recovery(
        read("hostile").replace(
            "<backend type='passthrough'>", f"<backend type='emulator'><encryption secret='{UUID}'/>"
        ),
        Wishes(
            {"vda": "/a"},
            name="x",
            boot_files={"kernel": "/images/x-kernel", "initrd": "/images/x-initrd"},
            tpm=True,
        ),
    )
    for kept in ("<kernel>/images/x-kernel</kernel>", "<initrd>/images/x-initrd</initrd>", "<cmdline>x</cmdline>"):
        assert kept in rewritten.xml
    assert f'<backend type="emulator" version="2.0">\n        <encryption secret="{UUID}" />' in rewritten.xml
    assert "/dev/tpm0" not in rewritten.xml
    assert "/etc/shadow" not in rewritten.xml
    assert not {"os/kernel", "os/initrd", "devices/tpm"} & set(rewritten.dropped)
    assert "os/dtb" in rewritten.dropped


def test_recovery_as_a_second_vm_on_a_host_that_lacks_its_machine() -> None:
    rewritten = rewrite_for_recovery(
        read("plain"),
        Wishes(
            {"vda": "/pool/web2.qcow2"},
            name="web2",
            volumes={"vda": "fast/web2.qcow2"},
            macs={"52:54:00:65:9a:7f": "02:00:00:00:00:01"},
            machine="q35",
            cpu_mode="host-model",
            run="run-1",
        ),
    )
    same_as_golden(GOLDEN / "plain.second.out.xml", rewritten.xml)
    assert run_of(rewritten.xml) == "run-1"
    assert run_of(read("plain")) is None
    assert "machine pc-q35-7.2 (is q35 now)" in rewritten.dropped
    assert "cpu host-passthrough (is host-model now)" in rewritten.dropped


def test_recovery_isolated_connects_every_card_to_that_network() -> None:
    networks = {"default": "network:gbs-isolated", "user": "network:gbs-isolated"}
    for name in ("plain", "lab"):
        text = rewrite_for_recovery(read(name), Wishes({"vda": "/d"}, name="x", networks=networks)).xml
        assert '<source network="gbs-isolated" />' in text
        assert 'type="user"' not in text
        assert 'type="passt"' not in text


def test_recovery_maps_networks_and_bridges() -> None:
    def source(mapped: str) -> str:
        return rewrite_for_recovery(read("plain"), Wishes({"vda": "/d"}, name="x", networks={"default": mapped})).xml

    assert '<interface type="bridge">\n      <source bridge="br7" />' in source("bridge:br7")
    assert '<interface type="network">\n      <source network="n" />' in source("network:n")
    assert '<interface type="user">' in source("user")
    with pytest.raises(ConfigError, match="unknown network"):
        source("ethernet:x")


def test_recovery_of_an_image_with_a_disk_that_the_definition_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="vdx"):
        rewrite_for_recovery(read("plain"), Wishes({"vda": "/a", "vdx": "/b"}, name="x"))


@pytest.mark.parametrize("name", HOSTILE)
def test_recovery_keeps_hostile_names_as_data(name: str) -> None:
    rewritten = rewrite_for_recovery(read("plain"), Wishes({"vda": f"/images/{name}"}, name=name, uuid="u"))
    domain = parse_domain(rewritten.xml)
    assert domain.name == name
    disk = domain.disk("vda")
    assert disk is not None
    assert disk.source == f"/images/{name}"
