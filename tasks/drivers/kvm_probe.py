"""Whether KVM works on this machine, found out by running something under it: a /dev/kvm that only pretends exists."""

import functools
import os
import platform
import shutil
import tempfile
from pathlib import Path

from tasks.drivers import process
from tasks.errors import CommandFailed

# A working KVM boots the sector in 0.2 s and panics the kernel in 1 s; TCG takes 2.4 s for the kernel. Nested
# virtualisation that only pretends was seen to abort, to hang, to crawl (4.6 s for the sector), and to boot the sector
# but hang in the kernel.
_SECTOR_DEADLINE_S = 3.0
_KERNEL_DEADLINE_S = 6.0
# isa-debug-exit ends QEMU with (value << 1) | 1: mov al, 1; out 0xf4, al; hlt; jmp to hlt.
_BOOT_SECTOR = bytes.fromhex("b001e6f4f4ebfd").ljust(510, b"\0") + b"\x55\xaa"
_SECTOR_STATUS = 3
_MACHINE = ("-accel", "kvm", "-cpu", "host", "-M", "pc", "-nodefaults", "-display", "none", "-no-reboot")
_KERNELS = (("/boot", "vmlinuz-*"), ("/lib/modules", "*/vmlinuz"))


@functools.cache
def kvm_works() -> bool:
    """True when a boot sector and, where one is found, a Linux kernel run under KVM in time; tried once per process.

    The kernel has no root file system: it panics and restarts, which ends QEMU. Off x86, /dev/kvm decides.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    if platform.machine() != "x86_64":
        return True
    return _sector_boots() and _kernel_boots()


def _sector_boots() -> bool:
    with tempfile.NamedTemporaryFile(prefix="gbs-kvm-probe-") as disk:
        disk.write(_BOOT_SECTOR)
        disk.flush()
        devices = ("-m", "64", "-device", "isa-debug-exit,iobase=0xf4,iosize=1")
        drive = ("-drive", f"file={disk.name},format=raw,if=ide")
        return _runs((*devices, *drive), _SECTOR_DEADLINE_S, _SECTOR_STATUS)


def _kernel_boots() -> bool:
    found = [path for folder, pattern in _KERNELS for path in Path(folder).glob(pattern) if os.access(path, os.R_OK)]
    if not found:
        return True
    newest = max(found, key=lambda path: path.stat().st_mtime)
    kernel = ("-m", "256", "-kernel", str(newest), "-append", "panic=-1 quiet")
    return _runs(kernel, _KERNEL_DEADLINE_S, 0)


def _runs(arguments: tuple[str, ...], deadline_s: float, status: int) -> bool:
    qemu = shutil.which("qemu-system-x86_64") or "/usr/libexec/qemu-kvm"
    argv = [qemu, *_MACHINE, *arguments]
    try:
        process.run(argv, deadline_s=deadline_s, accept=lambda ended: ended == status, name="KVM probe")
    except CommandFailed:
        return False
    return True
