"""A guest with btrfs as its root comes back to each of two nights, and boots the kernel that the night has.

Between them its kernel was upgraded by dpkg, its fstab was changed, files came and went. The image is older than both.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.drivers import appliance, facts, libvirt_host
from tasks.drivers.agent_shell import AgentShell
from tasks.drivers.appliance import DiskFile
from tasks.drivers.libvirt_host import Host
from tasks.model.facts import Facts
from tasks.model.image_update import update_plan
from tasks.model.ssh_target import SshTarget
from tests.lab.btrfs_guest import DEVICE, SUBVOLUMES, BtrfsGuest, btrfs_image
from tests.lab.guest_build import appliance as launched
from tests.lab.guest_image import copy_image
from tests.lab.kvm_host import KvmHost
from tests.unit.records import NIGHT, night_manifest

pytestmark = pytest.mark.timeout(3600)

EXCLUDED = ("/proc/*", "/sys/*", "/dev/*", "/run/*", "/tmp/*")
SAID = """
cat /home/letter
ls /home /srv
for place in / /home; do findmnt -no FSROOT $place; done
findmnt -no OPTIONS /home | grep -o nodev || echo dev
findmnt -no FSTYPE /scratch || echo none
systemctl is-active local-fs.target sysinit.target
systemctl --failed --quiet | wc -l
"""
UPGRADE = """
export DEBIAN_FRONTEND=noninteractive
echo linux-base linux-base/removing-running-kernel boolean false | debconf-set-selections
dpkg -i /root/upgrade.deb >/dev/null && rm /root/upgrade.deb
dpkg --purge $(dpkg-query -W -f '${Package} ' 'linux-image-*cloud-amd64') >/dev/null
"""


@dataclass(frozen=True)
class _Night:
    """What stage 1 has of a night, read by libguestfs from the frozen guest's disk, and what the guest then said."""

    facts: Facts
    tree: Path
    said: str


@dataclass(frozen=True)
class _Past:
    """The guest's image, and the nights that came after it; the guest itself is gone."""

    guest: BtrfsGuest
    image: Path
    nights: dict[str, _Night]


def _copy(guest: BtrfsGuest, target: Path) -> Path:
    with guest.frozen():
        copy_image(guest.outside(guest.disks["vda"]), target)
    return target


def _night(guest: BtrfsGuest, host: Host, folder: Path) -> _Night:
    folder.mkdir()
    found = facts.collect(AgentShell(host.domain(guest.name)), NIGHT)
    said = guest.run(SAID)
    disk, tar, tree = _copy(guest, folder / "disk.qcow2"), folder / "night.tar", folder / "data"
    with contextlib.closing(launched([(disk, "qcow2")], "reading the guest", lambda _line: None)) as handle:
        for place, subvolume in SUBVOLUMES.items():
            handle.mount_options(f"ro,subvol={subvolume}", DEVICE, place)
        handle.tar_out("/", str(tar), numericowner=True, xattrs=True, acls=True)
    disk.unlink()
    tree.mkdir()
    argv = ["tar", "-C", str(tree), "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-xpf", str(tar)]
    subprocess.run(argv, check=True)
    tar.unlink()
    return _Night(found, tree, said)


@pytest.fixture(scope="module")
def past(kvm_host: KvmHost, kvm_target: SshTarget, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Past]:
    folder, guest = tmp_path_factory.mktemp("nights"), BtrfsGuest(kvm_host, "btrfs1")
    try:
        guest.define(btrfs_image())
        guest.start()
        guest.run("echo before >/home/letter; echo gone >/home/old; mkdir /srv/folder; echo x >/srv/folder/x")
        image = _copy(guest, folder / "image.qcow2")
        with libvirt_host.connect(kvm_target) as host:
            guest.run("echo first >/home/letter; echo new >/home/new; rm -r /srv/folder")
            first = _night(guest, host, folder / "first")
            guest.run(
                "echo second >/home/letter; rm /home/old /home/new;"
                "sed -i 's/subvol=@home,/&nodev,/' /etc/fstab; mkdir /scratch;"
                "echo 'tmpfs /scratch tmpfs size=8m 0 0' >>/etc/fstab; mount -o remount,nodev /home; mount /scratch"
            )
            guest.run(UPGRADE, deadline_s=1800)
            second = _night(guest, host, folder / "second")
        guest.lose()
        yield _Past(guest, image, {"first": first, "second": second})
    finally:
        guest.lose()


def test_the_nights_differ_in_what_is_looked_at(past: _Past) -> None:
    first, second = past.nights.values()
    assert len(first.said.split()) == len(second.said.split()) + 2  # /home/old and /home/new
    assert {"first", "dev", "none"} <= {*first.said.split()}
    assert {"second", "nodev", "tmpfs"} <= {*second.said.split()}
    assert os.listdir(first.tree / "usr/lib/modules") != os.listdir(second.tree / "usr/lib/modules")


@pytest.mark.parametrize("name", ["first", "second"])
def test_guest_comes_back_as_of_the_night(past: _Past, name: str, tmp_path: Path) -> None:
    night, overlay, whole = past.nights[name], tmp_path / "overlay.qcow2", tmp_path / "whole.qcow2"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(past.image), "-F", "qcow2", str(overlay)]
    subprocess.run(argv, check=True)
    plan = update_plan(night.facts, night_manifest(paths=tuple(SUBVOLUMES), excluded=EXCLUDED))

    done = appliance.update_files(
        [DiskFile(overlay, "qcow2")],
        plan.mounts,
        night.tree,
        keep=plan.keep,
        deadline_s=1800,
        on_progress=lambda _text, _part: None,
    )

    assert not done.warnings
    subprocess.run(["qemu-img", "check", "-q", str(overlay)], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(overlay), str(whole)], check=True)
    try:
        past.guest.define(whole)
        past.guest.start()
        assert past.guest.run(SAID) == night.said
        assert past.guest.run("uname -r").split() == os.listdir(night.tree / "usr/lib/modules")
    finally:
        past.guest.lose()
