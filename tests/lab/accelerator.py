"""Whether KVM works on this machine, found out by running something under it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from tests.lab.process import boot_id

# A working KVM takes 0.2 s; nested virtualisation that only pretends was seen to abort, to hang and to crawl (4.6 s).
_DEADLINE_S = 3.0
# isa-debug-exit ends QEMU with (value << 1) | 1.
_BOOT_SECTOR = (
    bytes.fromhex(
        "b001"  # mov al, 1
        "e6f4"  # out 0xf4, al
        "f4"  # hlt
        "ebfd"  # jmp to hlt
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)
_EXIT_STATUS = 3


def cache_folder() -> Path:
    """The lab's cache (GBS_LAB_CACHE, else /var/cache/gbs-lab), made when missing."""
    folder = Path(os.environ.get("GBS_LAB_CACHE") or "/var/cache/gbs-lab")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def accelerator() -> str:
    """'kvm' when QEMU boots a sector under it in time, else 'tcg'; tried once per boot of the machine."""
    noted = cache_folder() / "accelerator.json"
    try:
        note = json.loads(noted.read_text(encoding="ascii"))
        if note["boot"] == boot_id():
            return str(note["accelerator"])
    except (FileNotFoundError, ValueError, KeyError):
        pass
    answer = "kvm" if _kvm_runs() else "tcg"
    partial = noted.with_name(f"accelerator.{os.getpid()}.partial")
    partial.write_text(json.dumps({"boot": boot_id(), "accelerator": answer}), encoding="ascii")
    partial.rename(noted)
    return answer


def _kvm_runs() -> bool:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    with tempfile.NamedTemporaryFile(prefix="gbs-kvm-probe-") as disk:
        disk.write(_BOOT_SECTOR)
        disk.flush()
        argv = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-M", "pc", "-m", "64", "-nodefaults"]
        argv += ["-display", "none", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        argv += ["-drive", f"file={disk.name},format=raw,if=ide"]
        try:
            done = subprocess.run(argv, capture_output=True, timeout=_DEADLINE_S, check=False)
        except (subprocess.TimeoutExpired, FileNotFoundError):
            return False
    return done.returncode == _EXIT_STATUS
