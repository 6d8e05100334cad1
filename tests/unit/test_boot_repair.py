"""What is done so that a rebuilt system boots: loader, initramfs, cards; and whose disks a template's become."""

from __future__ import annotations

import subprocess

import pytest

from tasks.errors import RecoveryRefused
from tasks.model.boot_repair import (
    VIRTIO,
    initramfs_script,
    install_script,
    lost_search,
    removable_copies,
    repair_of,
)
from tasks.model.domain_xml import parse_domain
from tasks.model.facts_network import Interface
from tasks.model.recovery import place_of, working_disks
from tasks.model.template_disks import as_disks_of, as_new_disks
from tests.unit.records import image_manifest
from tests.unit.test_domain_xml import minimal
from tests.unit.test_facts import facts

UUID = "f918dcb5-ea87-4a65-9298-8733ca9e3191"


@pytest.mark.parametrize(
    ("files", "copies"),
    [
        (
            {"debian": ["shimx64.efi", "grubx64.efi", "mmx64.efi", "BOOTX64.CSV"]},
            {
                "BOOT/BOOTX64.EFI": "debian/shimx64.efi",
                "BOOT/grubx64.efi": "debian/grubx64.efi",
                "BOOT/mmx64.efi": "debian/mmx64.efi",
            },
        ),
        ({"arch": ["GRUBX64.EFI"], "Boot": ["fbx64.efi"]}, {"Boot/BOOTX64.EFI": "arch/GRUBX64.EFI"}),
        ({"systemd": ["systemd-bootx64.efi"]}, {"BOOT/BOOTX64.EFI": "systemd/systemd-bootx64.efi"}),
        ({"Boot": ["bootx64.efi"], "debian": ["shimx64.efi"]}, {}),
        ({"debian": ["shimaa64.efi"]}, {}),
    ],
    ids=["shim", "grub-other-case", "systemd-boot", "there", "other-architecture"],
)
def test_loader_is_copied_where_a_firmware_without_variables_looks(
    files: dict[str, list[str]], copies: dict[str, str]
) -> None:
    assert removable_copies(files, "x86_64") == copies


def test_core_image_is_lost_when_no_file_system_has_what_it_searches() -> None:
    config = f"search.fs_uuid {UUID} root hd0,gpt2 \nset prefix=($root)'/grub'\n"
    assert lost_search(config, {f"uuid={UUID}"}) is None
    assert lost_search(config, {"uuid=another"}) == UUID
    assert lost_search("set prefix=x\n", set()) is None


def test_only_a_physical_client_needs_drivers_and_names_of_cards() -> None:
    cards = (Interface(name="eno1", mac="3C:EC:EF:00:00:01", mtu=1500), Interface(name="a/b", mac="x", mtu=1500))
    client = facts(interfaces=cards)
    assert repair_of(client, was_physical=False).drivers == ()
    physical = repair_of(client, was_physical=True)
    assert (physical.drivers, physical.cards) == (VIRTIO, (("eno1", "3c:ec:ef:00:00:01"),))


@pytest.mark.parametrize("script", [initramfs_script(VIRTIO), install_script("a'; rm -rf /; '")])
def test_scripts_are_what_sh_understands(script: str) -> None:
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0


def test_template_gets_the_targets_and_places_of_the_definition() -> None:
    source = "<source file='/images/web9.img'/>"
    disk = f"<disk type='file' device='disk'><driver type='raw'/>{source}<target dev='sda' bus='scsi'/></disk>"
    cdrom = "<disk type='file' device='cdrom'><source file='/x.iso'/><target dev='sdb'/></disk>"
    image = as_disks_of(image_manifest(), parse_domain(minimal("web9", disk + cdrom)))
    (record,) = working_disks(image)
    assert (record.target, record.file, record.format) == ("sda", "sda.raw", "raw")
    assert image.disks[0].file == "vda.qcow2"
    assert place_of(record, "web9", "/new", same_host=True) == "/images/web9.img"
    with pytest.raises(RecoveryRefused, match="has 2 disks"):
        as_disks_of(image_manifest(), parse_domain(minimal("web9", disk + disk.replace("sda", "sdc"))))


def test_block_device_of_the_definition_becomes_a_file() -> None:
    disk = "<disk type='block' device='disk'><source dev='/dev/vg/web9'/><target dev='vda'/></disk>"
    image = as_disks_of(image_manifest(), parse_domain(minimal("web9", disk)))
    assert place_of(working_disks(image)[0], "web9", "/new", same_host=True) == "/new/web9-vda.qcow2"


def test_new_disks_are_thin_and_where_the_host_keeps_images() -> None:
    (record,) = working_disks(as_new_disks(image_manifest(), ["/images/files1-vda.qcow2"]))
    assert (record.target, record.format) == ("vda", "qcow2")
    assert place_of(record, "files1", "/images", same_host=True) == "/images/files1-vda.qcow2"
