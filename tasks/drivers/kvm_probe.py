"""Whether KVM works on this machine, found out by running something under it: a /dev/kvm that only pretends exists."""

import functools
import os
import platform
import shutil
import tempfile

from tasks.drivers import process
from tasks.errors import CommandFailed

# A working KVM takes 0.2 s. Nested virtualisation that only pretends was seen to abort, to hang, or to crawl (4.6 s).
_DEADLINE_S = 3.0
# isa-debug-exit ends QEMU with (value << 1) | 1: mov al, 1; out 0xf4, al; hlt; jmp to hlt.
_BOOT_SECTOR = bytes.fromhex("b001e6f4f4ebfd").ljust(510, b"\0") + b"\x55\xaa"
_EXIT_STATUS = 3


@functools.cache
def kvm_works() -> bool:
    """True when QEMU boots a sector under KVM in time; tried once per process (elsewhere than x86: /dev/kvm exists)."""
    qemu = shutil.which("qemu-system-x86_64") or "/usr/libexec/qemu-kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    if platform.machine() != "x86_64":
        return True
    with tempfile.NamedTemporaryFile(prefix="gbs-kvm-probe-") as disk:
        disk.write(_BOOT_SECTOR)
        disk.flush()
        argv = [
            qemu,
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-M",
            "pc",
            "-m",
            "64",
            "-nodefaults",
            "-display",
            "none",
        ]
        argv += ["-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        argv += ["-drive", f"file={disk.name},format=raw,if=ide"]
        try:
            process.run(argv, deadline_s=_DEADLINE_S, accept=lambda status: status == _EXIT_STATUS, name="KVM probe")
        except CommandFailed:
            return False
    return True
