"""Guests for the tests of SnapLive, and what is true of a guest whose window has ended well."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from tasks.drivers.host_shell import HostShell
from tasks.drivers.journal import Journal, journal_path
from tasks.drivers.libvirt_host import Host
from tasks.drivers.snaplive import Window, open_window
from tests.lab.tiny_guest import TinyGuest, last_record
from tests.lab.window_child import MIN_FREE_BYTES

Guests = Callable[..., TinyGuest]


def journal_of(host: Host, folder: Path, guest: TinyGuest) -> Journal:
    """The journal of a guest below `folder`."""
    return Journal(journal_path(folder, host.name, host.domain(guest.name).uuid))


def opened(host: Host, shell: HostShell, journal: Journal, guest: TinyGuest, **options) -> Window:
    """A window that was just opened."""
    options = {"min_free_bytes": MIN_FREE_BYTES} | options
    return open_window(host, shell, journal, guest.name, "run-1", **options)


def sources(guest: TinyGuest, *flags: str) -> dict[str, str]:
    """What virsh shows as the guest's disks."""
    lines = guest.host.virsh("domblklist", guest.name, *flags).splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line.strip())


def assert_on_base(guest: TinyGuest, state: str = "running") -> None:
    """Live and inactive definitions name the bases, and the guest is in the state it was in."""
    bases = {disk.target: disk.path for disk in guest.disks}
    assert sources(guest) == bases
    assert sources(guest, "--inactive") == bases
    assert ".gbs-" not in guest.host.virsh("dumpxml", "--inactive", guest.name)
    assert guest.host.virsh("domstate", guest.name).strip() == state


def overlays(guest: TinyGuest) -> list[str]:
    """The overlays that lie beside the guest's disks, also those moved aside."""
    return sorted(path.name for path in guest.host.images.glob(f"{guest.name}-*.gbs-*"))


def assert_sound(guest: TinyGuest) -> None:
    """Shut the guest off and let qemu-img and the log's own numbers judge what is in its disks."""
    guest.host.run(["virsh", "-q", "destroy", guest.name], check=False)
    for disk in guest.disks:
        path = guest.outside(disk.path)
        if disk.format == "qcow2":
            subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], check=True)
        assert last_record(path, disk.format) > 0
