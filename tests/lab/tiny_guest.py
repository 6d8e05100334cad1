"""A guest without an operating system: a boot sector that keeps running, or keeps writing a numbered log to its disks.

The log is what tests of consistency read. Record k (k = 1, 2, 3 ...) is one sector: k as a 32-bit little-endian number,
then LOG_MAGIC. It goes to sector LOG_FIRST + k % LOG_SECTORS of every disk, in the order of the disks, each write done
before the next one starts. So a copy of the disks of one moment holds, on every disk, all of the last LOG_SECTORS
records up to some k, and no two disks are more than one record apart. About 70 records are written per second. It goes
off at the power button; the guest that only runs does not.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import struct
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from tests.lab.accelerator import accelerator
from tests.lab.kvm_host import KvmHost
from tests.lab.process import LabError

SECTOR_BYTES = 512
LOG_HEADER = 63
LOG_FIRST = 64
LOG_SECTORS = 8192
LOG_MAGIC = b"GBS tiny guest log"

_IDLE = bytes.fromhex(
    "fb"  # 7c00        sti                     ; the timer ends each hlt
    "f4"  # 7c01 again: hlt
    "ebfd"  # 7c02        jmp again
)

# The record under way lies at 0x7e00; at the start it is read from sector LOG_HEADER, where the last one of an earlier
# run was noted (at most 4 records late: writing those again changes nothing).
_WRITER = bytes.fromhex(
    "31c0"  # 7c00        xor ax, ax
    "8ed8"  # 7c02        mov ds, ax
    "8ed0"  # 7c04        mov ss, ax
    "bc007c"  # 7c06        mov sp, 0x7c00
    "fb"  # 7c09        sti
    "ba0206"  # 7c0a        mov dx, 0x602           ; ACPI's PM1 enable
    "b80001"  # 7c0d        mov ax, 0x100           ; the power button
    "ef"  # 7c10        out dx, ax
    "b442"  # 7c11        mov ah, 0x42            ; extended read
    "b280"  # 7c13        mov dl, 0x80            ; of the first disk
    "be737c"  # 7c15        mov si, packet
    "cd13"  # 7c18        int 0x13
    "66ff06007e"  # 7c1a next:  inc dword [0x7e00]
    "66a1007e"  # 7c1f        mov eax, [0x7e00]
    "6625ff1f0000"  # 7c23        and eax, LOG_SECTORS - 1
    "6683c040"  # 7c29        add eax, LOG_FIRST
    "66a37b7c"  # 7c2d        mov [packet + 8], eax
    "e82600"  # 7c31        call write_all
    "f606007e03"  # 7c34        test byte [0x7e00], 3
    "75df"  # 7c39        jnz next
    "66c7067b7c3f000000"  # 7c3b        mov dword [packet + 8], LOG_HEADER
    "e81300"  # 7c44        call write_all
    "f4"  # 7c47        hlt                     ; 18.2 times a second
    "ba0006"  # 7c48        mov dx, 0x600           ; ACPI's PM1 status
    "ed"  # 7c4b        in ax, dx
    "f6c401"  # 7c4c        test ah, 1              ; the power button
    "74c9"  # 7c4f        jz next
    "ba0406"  # 7c51        mov dx, 0x604           ; ACPI's PM1 control
    "b80020"  # 7c54        mov ax, 0x2000          ; soft off
    "ef"  # 7c57        out dx, ax
    "fa"  # 7c58        cli
    "f4"  # 7c59        hlt
    "b280"  # 7c5a write_all: mov dl, 0x80
    "52"  # 7c5c each:  push dx
    "b80043"  # 7c5d        mov ax, 0x4300          ; extended write, no verify
    "be737c"  # 7c60        mov si, packet
    "cd13"  # 7c63        int 0x13
    "5a"  # 7c65        pop dx
    "fec2"  # 7c66        inc dl
    "88d0"  # 7c68        mov al, dl
    "2c80"  # 7c6a        sub al, 0x80
    "3a067504"  # 7c6c        cmp al, [0x475]         ; number of disks (BIOS data area)
    "72ea"  # 7c70        jb each
    "c3"  # 7c72        ret
    "10000100"  # 7c73 packet: size 16, one sector
    "007e0000"  # 7c77        from or to 0000:7e00
    "3f00000000000000"  # 7c7b        sector LOG_HEADER
)


def boot_sector(*, writes: bool) -> bytes:
    """The 512 bytes of the boot sector, for the guest that writes the log or the one that only runs."""
    return (_WRITER if writes else _IDLE).ljust(SECTOR_BYTES - 2, b"\0") + b"\x55\xaa"


@dataclasses.dataclass(frozen=True)
class Disk:
    """A disk of a tiny guest; `path` is the host's path of its image, of at least 5 MiB."""

    target: str
    format: str
    path: str
    size_bytes: int = 64 << 20


def make_disk(path: Path, image_format: str, size_bytes: int, *, writes: bool) -> None:
    """Create a disk image (raw or qcow2) with the boot sector and an empty log."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
        raw = Path(folder, "disk.raw")
        with raw.open("wb") as file:
            file.write(boot_sector(writes=writes))
            file.seek(LOG_HEADER * SECTOR_BYTES)
            file.write(struct.pack("<I", 0) + LOG_MAGIC)
            file.truncate(size_bytes)
        argv = ["qemu-img", "convert", "-q", "-f", "raw", "-O", image_format, str(raw), str(path)]
        subprocess.run(argv, check=True)


def last_record(image: Path, image_format: str, over: Path | None = None) -> int:
    """The last record in the log of a disk image (of an overlay `over` a qcow2 image); 0 for an empty log.

    The image may be in use. LabError when the log is not what one moment can have left: a record is missing or torn.
    """
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=".reading-") as folder:
        raw = Path(folder, "log.raw")
        # In blocks of all that lies before the log: sector by sector it takes ten times as long. The count is from the
        # start of the input, not from what is skipped.
        graph = {"driver": image_format, "file": {"driver": "file", "filename": str(image)}}
        if over is not None:
            graph["backing"] = {"driver": "qcow2", "file": {"driver": "file", "filename": str(over)}}
        argv = ["qemu-img", "dd", "-U", "-O", "raw", f"bs={LOG_FIRST * SECTOR_BYTES}", "skip=1"]
        argv += [f"count={1 + LOG_SECTORS // LOG_FIRST}", f"if=json:{json.dumps(graph)}", f"of={raw}"]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        return check_log(raw.read_bytes())


def check_log(log: bytes) -> int:
    """The last record of a log's bytes; LabError when a record before it is missing or torn."""
    records = {}
    for slot in range(LOG_SECTORS):
        sector = log[slot * SECTOR_BYTES : (slot + 1) * SECTOR_BYTES]
        if sector.strip(b"\0"):
            (number,) = struct.unpack_from("<I", sector)
            if number % LOG_SECTORS != slot or not sector[4:].startswith(LOG_MAGIC):
                raise LabError(f"sector {LOG_FIRST + slot} holds no record that belongs there: {sector[:24]!r}")
            records[slot] = number
    last = max(records.values(), default=0)
    for number in range(max(1, last - LOG_SECTORS + 1), last + 1):
        if records.get(number % LOG_SECTORS) != number:
            raise LabError(f"record {number} is missing though record {last} is there")
    return last


@dataclasses.dataclass
class TinyGuest:
    """A tiny guest on a KVM host with disks vda, vdb ... in one format; it writes its log unless `writes` is False."""

    host: KvmHost
    name: str
    disk_count: int = 1
    disk_format: str = "qcow2"
    size_bytes: int = 64 << 20
    writes: bool = True

    @property
    def disks(self) -> list[Disk]:
        """Its disks as defined (a snapshot makes libvirt use other files)."""
        targets = [f"vd{chr(ord('a') + index)}" for index in range(self.disk_count)]
        folder = "/var/lib/libvirt/images"
        return [
            Disk(target, self.disk_format, f"{folder}/{self.name}-{target}.{self.disk_format}", self.size_bytes)
            for target in targets
        ]

    def outside(self, path: str) -> Path:
        """Where the machine sees a file of the host's image folder."""
        return self.host.images / Path(path).name

    def define(self) -> None:
        """Make its disks and define it."""
        for disk in self.disks:
            make_disk(self.outside(disk.path), disk.format, disk.size_bytes, writes=self.writes)
        self.host.virsh("define", "/dev/stdin", input_text=self.domain_xml())

    def start(self) -> None:
        """Define it when it is not yet defined, and start it; returns when QEMU runs."""
        if self.name not in self.host.virsh("list", "--all", "--name").split():
            self.define()
        self.host.virsh("start", self.name)

    def wait_for_record(self, number: int, deadline_s: float = 60.0) -> int:
        """Wait until the base image of vda holds record `number`; the last one is returned (LabError if late)."""
        disk = self.disks[0]
        end = time.monotonic() + deadline_s
        while (last := last_record(self.outside(disk.path), disk.format)) < number:
            if time.monotonic() > end:
                raise LabError(f"{self.name} wrote {last} records in {deadline_s:.0f} s, not {number}")
            time.sleep(0.1)
        return last

    def change(self, target: str, commands: Sequence[str]) -> None:
        """Let QEMU itself change a disk of the running guest: qemu-io's `write -P BYTE PLACE LENGTH`, `discard ...`.

        QEMU does not say how it went: the last write is read back from the image; LabError when it is not there.
        """
        live = ET.fromstring(self.host.virsh("dumpxml", self.name))
        alias = live.find(f"devices/disk/target[@dev='{target}']/../alias")
        if alias is None:
            raise LabError(f"{self.name} has no disk {target} that runs")
        backend = f"/machine/peripheral/{alias.get('name')}/virtio-backend"
        words = ["qemu-monitor-command", "--hmp", self.name]
        lines = [shlex.join([*words, f'qemu-io -d {backend} "{command}"']) for command in (*commands, "flush")]
        said = self.host.virsh(";".join(lines))
        if said.strip():
            raise LabError(f"qemu-io on {target} of {self.name}: {said.strip()}")
        for write in [command for command in commands if command.startswith("write ")][-1:]:
            image = next(disk for disk in self.disks if disk.target == target)
            argv = ["qemu-io", "-r", "-U", "-f", image.format, "-c", write.replace("write", "read", 1)]
            done = subprocess.run([*argv, str(self.outside(image.path))], capture_output=True, text=True, check=False)
            if done.returncode != 0 or "failed" in done.stdout:
                raise LabError(f"{write} on {target} of {self.name} is not in its image: {done.stdout}{done.stderr}")

    def kill_qemu(self) -> None:
        """SIGKILL its QEMU; returns when libvirt has noticed."""
        self.host.run(["sh", "-c", 'kill -9 "$(cat "$1")"', "sh", f"/run/libvirt/qemu/{self.name}.pid"])
        end = time.monotonic() + 30
        while self.host.virsh("domstate", self.name).strip() != "shut off":
            if time.monotonic() > end:
                raise LabError(f"libvirt does not notice that the QEMU of {self.name} is gone")
            time.sleep(0.05)

    def destroy(self) -> None:
        """End it, undefine it and remove the images that it was made with."""
        self.host.run(["virsh", "-q", "destroy", self.name], check=False)
        self.host.virsh("undefine", self.name, "--checkpoints-metadata", "--snapshots-metadata")
        for disk in self.disks:
            self.outside(disk.path).unlink(missing_ok=True)

    def domain_xml(self) -> str:
        """Its libvirt definition."""
        disks = "".join(
            f"""
    <disk type='file' device='disk'>
      <driver name='qemu' type='{disk.format}' discard='unmap'/>
      <source file={quoteattr(disk.path)}/>
      <target dev='{disk.target}' bus='virtio'/>
      <boot order='{order}'/>
    </disk>"""
            for order, disk in enumerate(self.disks, start=1)  # SeaBIOS knows only disks that have an order
        )
        return f"""<domain type='{"kvm" if accelerator() == "kvm" else "qemu"}'>
  <name>{escape(self.name)}</name>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""
