"""The picture of a console, judged by file(1)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tasks.drivers import console
from tasks.drivers.libvirt_host import Host
from tasks.errors import HypervisorError
from tests.lab.kvm_host import KvmHost
from tests.lab.snaplive_guest import Guests


def test_console_is_a_picture_that_browsers_show(kvm_host: KvmHost, host: Host, guests: Guests, tmp_path: Path) -> None:
    guest = guests()
    with pytest.raises(HypervisorError, match="no screens"):
        console.picture(host.domain(guest.name))
    kvm_host.virsh("destroy", guest.name)
    kvm_host.virsh("undefine", guest.name)
    screen = "<video><model type='vga'/></video></devices>"
    kvm_host.virsh("define", "/dev/stdin", input_text=guest.domain_xml().replace("</devices>", screen))
    kvm_host.virsh("start", guest.name)
    shown = tmp_path / "console.png"
    shown.write_bytes(console.picture(host.domain(guest.name)))
    said = subprocess.run(["file", "--brief", shown], capture_output=True, text=True, check=True).stdout
    assert said.startswith("PNG image data, 640 x 480")
