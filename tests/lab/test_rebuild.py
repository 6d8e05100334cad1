"""A physical client is rebuilt as a VM from a template made of another system, whose ids and names differ, and boots.

All by GBS's own commands: an image becomes a template, `gbs recover physical` does the rest. The template's GRUB and
initramfs are of no use to the client before: both are made again in the appliance. The client is the lab's guest, whose
facts and files are taken from its disk; its machine is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tasks.drivers.digest import record, sha256_file, write_listing
from tasks.drivers.store import write_model
from tasks.model.facts import FACTS, Facts, assemble
from tasks.model.facts_mounts import FileSystem
from tasks.model.facts_network import Interface
from tasks.model.manifest import DiskRecord
from tests.lab.accelerator import accelerator
from tests.lab.agent_guest import AgentGuest
from tests.lab.demo import Demo
from tests.lab.guest import disk_xml, domain_xml
from tests.lab.guest_build import appliance as launched
from tests.lab.guest_image import guest_image
from tests.lab.site import Site
from tests.lab.sshd import free_port
from tests.unit.records import image_manifest, night_manifest

pytestmark = pytest.mark.timeout(3600)
_PLACES = {"/": "/dev/vg0/root", "/boot": "/dev/sda2", "/var": "/dev/vg0/var"}
_STRANGE = "11111111-2222-3333-4444-555555555555"
_LACKING = "virtio_blk"
"""Taken out of the client's initramfs: the machine that it was made on had no use for it."""


class _Site(Site):
    """A site with a KVM host and a physical client that is not there any more."""

    def declaration(self) -> dict[str, object]:
        """What the inventory says."""
        declared = super().declaration()
        return {**declared, "clients": {"metal1": {"address": "127.0.0.1", "port": free_port()}}}


@pytest.fixture(scope="module")
def world() -> Iterator[Demo]:
    """A KVM host without a guest, a GBS site on it, a Prefect server with blocks."""
    demo = Demo(f"test-rebuild-{os.getpid()}")
    demo.site = _Site(demo.lab)
    try:
        demo.lab.host_up()
        demo.site.create()
        demo.server.start()
        demo.gbs("gbs", "apply")
        yield demo
    finally:
        demo.down()


def _facts(handle: Any) -> Facts:
    said = json.loads(handle.debug("sh", [FACTS["block_devices"].command[2]]))
    # The appliance's own disk, which may be any of them, has no partitions.
    text = json.dumps({"blockdevices": [row for row in said["blockdevices"] if row.get("children")]})
    systems = [
        FileSystem(
            mountpoint=place,
            source=device,
            fstype=handle.vfs_type(device),
            uuid=handle.vfs_uuid(device),
            size_bytes=0,
            used_bytes=0,
        )
        for place, device in _PLACES.items()
    ]
    values = {
        "block_devices": FACTS["block_devices"].parse(text.replace('"/sysroot/', '"/').replace('"/sysroot"', '"/"')),
        "file_systems": tuple(systems),
        "os_release": {"ID": "debian"},
        "kernel": "6.1",
        "architecture": "x86_64",
        "hostname": "metal1",
        "interfaces": (Interface(name="eno1", mac="3c:ec:ef:00:00:01", mtu=1500),),
    }
    return assemble(datetime(2026, 1, 1, tzinfo=UTC), values)


def _part(disk: Path, tree: Path) -> Facts:
    """Take the guest's facts and files from its disk, then make the disk another guest's."""
    with contextlib.closing(launched([(disk, "qcow2")], "reading the guest", lambda _line: None)) as handle:
        for place, device in _PLACES.items():
            handle.mount(device, place)
        handle.sh(f"sed -i /{_LACKING}/d /usr/share/initramfs-tools/modules.d/lab && update-initramfs -u -k all")
        assert _LACKING not in handle.sh("lsinitramfs /boot/initrd.img-*")
        client = _facts(handle)
        handle.tar_out("/", str(tree.with_suffix(".tar")), numericowner=True, xattrs=True, acls=True)
        handle.write("/etc/hostname", b"template1\n")
        handle.sh("sed -i s/vg0/tpl/ /etc/fstab")
        handle.write("/var/of-the-template", b"")
        # As GRUB was installed where /boot is on another disk: it searches for a UUID, here for nobody's.
        handle.write("/boot/grub/i386-pc/load.cfg", f"search.fs_uuid {_STRANGE} root \n".encode())
        handle.pwrite_device("/dev/sda", bytes(440), 0)  # its boot code
        handle.umount_all()
        for device in ("/dev/sda2", "/dev/vg0/root"):
            handle.e2fsck(device, correct=True)
        for device in _PLACES.values():
            handle.set_uuid_random(device)
        handle.vgrename("vg0", "tpl")
        handle.vg_activate_all(False)
        for number in (1, 2, 3):
            handle.part_set_gpt_guid("/dev/sda", number, f"{_STRANGE[:-1]}{number}")
        handle.shutdown()
    tree.mkdir()
    argv = ["tar", "-C", str(tree), "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-xpf"]
    subprocess.run([*argv, str(tree.with_suffix(".tar"))], check=True)
    (tree / "etc/hostname").write_text("metal1\n")
    return client


def _publish_image(demo: Demo, disk: Path) -> None:
    """The template's system, as an image of VM template1."""
    now = datetime.now(UTC)
    folder = demo.site.store / "images/kvm1/template1/20261101T000000Z"
    folder.mkdir(parents=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(disk), str(folder / "vda.qcow2")], check=True)
    source = "/var/lib/libvirt/images/template1.qcow2"
    xml = domain_xml("template1", 1024, "<os>", disk_xml("vda", "qcow2", source))
    (folder / "domain.xml").write_text(xml.replace("</name>", f"</name><uuid>{_STRANGE}</uuid>"))
    size = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(folder / "vda.qcow2")]))
    row = DiskRecord(
        target="vda", file="vda.qcow2", format="qcow2", source=source, virtual_size_bytes=size["virtual-size"]
    )
    files = tuple(record(folder / name, folder) for name in ("vda.qcow2", "domain.xml"))
    made = image_manifest(now, id=folder.name, vm="template1", disks=(row,), files=files)
    write_model(folder / "manifest.json", made)


def _publish_night(demo: Demo, tree: Path, facts: Facts) -> None:
    """The client's last overnight copy."""
    folder = demo.site.store / "overnight/metal1"
    folder.mkdir(parents=True)
    tree.rename(folder / "data")
    write_listing(folder / "data", folder / "SHA256SUMS", None, None)
    (folder / "facts.json").write_text(facts.model_dump_json())
    sums = {"listing_sha256": sha256_file(folder / "SHA256SUMS"), "facts_sha256": sha256_file(folder / "facts.json")}
    paths = {"paths": tuple(_PLACES), "excluded": ("/proc/*", "/sys/*", "/dev/*", "/run/*")}
    made = night_manifest(datetime.now(UTC), client="metal1", **sums, **paths)
    write_model(folder / "manifest.json", made)


def test_physical_client_comes_back_as_a_vm_from_a_template_of_another_system(world: Demo) -> None:
    # Beside the store: files are renamed into it.
    overlay, tree = world.site.root / "disk.overlay", world.site.root / "tree"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(guest_image()), "-F", "qcow2", str(overlay)]
    subprocess.run(argv, check=True)
    facts = _part(overlay, tree)
    _publish_image(world, overlay)
    _publish_night(world, tree, facts)

    world.gbs("gbs", "image", "template", "add", "template1")
    wanted = ["--to", "kvm1", "--network", "network:default", "--memory", "1024", "--processors", "1"]
    wanted += ["--emulated"] if accelerator() == "tcg" else []
    said = world.gbs("gbs", "recover", "physical", "metal1", *wanted, "--isolated", "--yes", "--json", capture=True)

    done = json.loads(said)
    words = " ".join((*done["warnings"], *done["problems"]))
    assert "rebuilt from template template1/20261101T000000Z" in words
    assert f"searched for the template's file system {_STRANGE}" in words
    assert "initramfs" in words
    inside = AgentGuest(world.lab.kvm1, done["name"])
    assert inside.run("hostname; test ! -e /var/of-the-template") == "metal1\n"
    uuids = inside.run("for place in / /boot /var; do findmnt -no UUID $place; done").split()
    assert uuids == [row.uuid for place in _PLACES for row in facts.file_systems if row.mountpoint == place]
    assert inside.run("vgs --noheadings -o vg_name").split() == ["vg0"]
    assert inside.run("ls /sys/class/net").split() == ["eno1", "lo"], "its card has the name that its machine gave it"
    assert inside.run("systemctl is-active local-fs.target sysinit.target").split() == ["active", "active"]
