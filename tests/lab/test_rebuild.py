"""A guest is rebuilt from a template made of another one, whose ids and names differ, and boots.

Its GRUB and its initramfs are of no use to it before: both are made again in the appliance.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tasks.drivers import adoption, appliance
from tasks.drivers.appliance import DiskFile
from tasks.model.adoption import adoption as adoption_of
from tasks.model.boot_repair import repair_of
from tasks.model.facts import FACTS, Facts, assemble
from tasks.model.facts_mounts import FileSystem
from tasks.model.image_update import update_plan
from tasks.model.shape import Shape, shape_of_facts
from tests.lab.guest import BOOT_DEADLINE_S, Guest
from tests.lab.guest_build import appliance as launched
from tests.lab.guest_image import guest_image
from tests.lab.kvm_host import KvmHost
from tests.lab.sshd import free_port
from tests.lab.uefi_guest import UefiGuest
from tests.unit.records import night_manifest

pytestmark = pytest.mark.timeout(3600)
_PLACES = {"/": "/dev/vg0/root", "/boot": "/dev/sda2", "/var": "/dev/vg0/var"}
_STRANGE = "11111111-2222-3333-4444-555555555555"
_DRIVER = "nvmet"
"""A module of the guest's kernel that its initramfs does not have."""


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
        "hostname": "rebuilt1",
    }
    return assemble(datetime(2026, 1, 1, tzinfo=UTC), values)


def _part(disk: Path, tree: Path) -> Facts:
    """Take the guest's facts and files from its disk, then make the disk another guest's."""
    with contextlib.closing(launched([(disk, "qcow2")], "reading the guest", lambda _line: None)) as handle:
        for place, device in _PLACES.items():
            handle.mount(device, place)
        client = _facts(handle)
        handle.tar_out("/", str(tree.with_suffix(".tar")), numericowner=True, xattrs=True, acls=True)
        handle.write("/etc/hostname", b"template1\n")
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
    (tree / "etc/hostname").write_text("rebuilt1\n")
    return client


def _template_shape(client: Facts) -> Shape:
    """Of the template, which differs in the name of its volume group alone."""
    return Shape.model_validate_json(shape_of_facts(client).model_dump_json().replace('"vg0-', '"tpl-'))


def test_guest_rebuilt_from_a_template_of_another_boots_as_itself(kvm_host: KvmHost, tmp_path: Path) -> None:
    overlay, whole, tree = tmp_path / "disk.overlay", tmp_path / "disk.qcow2", tmp_path / "tree"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(guest_image()), "-F", "qcow2", str(overlay)]
    subprocess.run(argv, check=True)
    facts = _part(overlay, tree)
    disks = [DiskFile(overlay, "qcow2")]
    plan = update_plan(facts, night_manifest(paths=tuple(_PLACES), excluded=("/proc/*", "/sys/*", "/dev/*", "/run/*")))
    common: Any = {"image": "template", "deadline_s": 1800, "on_progress": lambda *_: None}

    wanted = adoption_of(facts, _template_shape(facts), client="rebuilt1", called="tpl")
    adoption.adopt(disks, wanted, **common)
    appliance.update_files(disks, plan.mounts, tree, keep=plan.keep, **common)
    repair = replace(repair_of(facts, was_physical=True), drivers=("virtio_blk", _DRIVER))
    made = adoption.make_bootable(disks, plan.mounts, repair, **common)

    assert any(f"searched for the template's file system {_STRANGE}" in text for text in made.done)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(overlay), str(whole)], check=True)
    guest = Guest(kvm_host, "rebuilt1", free_port(), Path("ssh"))
    guest.install(whole)
    try:
        guest.start()
        end = time.monotonic() + BOOT_DEADLINE_S
        while not guest.agent_answers() and time.monotonic() < end:
            time.sleep(1)
        inside = UefiGuest(kvm_host, "rebuilt1")
        assert inside.run("hostname; test ! -e /var/of-the-template") == "rebuilt1\n"
        uuids = inside.run("for place in / /boot /var; do findmnt -no UUID $place; done").split()
        assert uuids == [row.uuid for place in _PLACES for row in facts.file_systems if row.mountpoint == place]
        assert inside.run("vgs --noheadings -o vg_name").split() == ["vg0"]
        assert inside.run("systemctl is-active local-fs.target sysinit.target").split() == ["active", "active"]
    finally:
        guest.destroy()
    assert any("initramfs" in text for text in made.done), made.warnings
