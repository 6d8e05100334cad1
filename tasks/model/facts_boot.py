"""Facts: the boot loader and the firmware's boot entries (efibootmgr)."""

import re
from typing import Literal

from tasks.model.fact import FactRow

BootMode = Literal["bios", "uefi", "unknown"]
BootLoader = Literal["grub", "systemd-boot", "extlinux", "unknown"]
_FILES: dict[str, BootLoader] = {
    "/boot/grub/grub.cfg": "grub",
    "/boot/grub2/grub.cfg": "grub",
    "/boot/efi/loader/loader.conf": "systemd-boot",
    "/efi/loader/loader.conf": "systemd-boot",
    "/boot/loader/loader.conf": "systemd-boot",
    "/boot/extlinux/extlinux.conf": "extlinux",
    "/boot/extlinux.conf": "extlinux",
    "/boot/syslinux/syslinux.cfg": "extlinux",
}
"""Where a loader's configuration lies, the likelier one first: a client that changed its loader may have both."""
_PROGRAMS: tuple[tuple[str, BootLoader], ...] = (("grub", "grub"), ("shim", "grub"), ("systemd-boot", "systemd-boot"))
"""By what an EFI program's name begins with. shim starts GRUB, unless it was built to start another."""
_ENTRY = re.compile(r"^Boot([0-9A-Fa-f]{4})([* ]) ([^\t\n]*)(?:\t(.*))?$", re.MULTILINE)
_PROGRAM = re.compile(r"\\([^\\/()]+)\.efi", re.IGNORECASE)


class EfiEntry(FactRow):
    """A boot entry of the firmware; `path` is its device path as efibootmgr writes it."""

    number: str
    label: str
    active: bool
    path: str = ""


class EfiBoot(FactRow):
    """The firmware's boot entries, in which order they are tried, and which one this boot came from."""

    entries: tuple[EfiEntry, ...] = ()
    order: tuple[str, ...] = ()
    current: str = ""


def parse_efi_boot(text: str) -> EfiBoot:
    """The output of `efibootmgr -v`; the raw bytes that version 18 adds below an entry are left out."""
    return EfiBoot(
        entries=tuple(
            EfiEntry(number=number.upper(), label=label.strip(), active=mark == "*", path=path.strip())
            for number, mark, label, path in _ENTRY.findall(text)
        ),
        order=tuple(number.strip().upper() for number in _line(text, "BootOrder").split(",") if number.strip()),
        current=_line(text, "BootCurrent").upper(),
    )


def _line(text: str, key: str) -> str:
    found = re.search(rf"^{key}: *([0-9A-Fa-f,]+) *$", text, re.MULTILINE)
    return found[1] if found else ""


def parse_loader_files(text: str) -> tuple[BootLoader, ...]:
    """Whose configuration is there, the likelier loader first; one path of LOADER_FILES a line."""
    there = set(text.splitlines())
    return tuple(dict.fromkeys(loader for path, loader in _FILES.items() if path in there))


def boot_loader(boot_mode: BootMode, configured: tuple[BootLoader, ...], efi_boot: EfiBoot | None) -> BootLoader:
    """What starts the kernel: by the EFI program that this boot came from, else by whose configuration is there."""
    if boot_mode == "uefi" and efi_boot is not None:
        paths = [entry.path for entry in efi_boot.entries if entry.number == efi_boot.current]
        programs = [program.lower() for path in paths for program in _PROGRAM.findall(path)]
        for program in programs:
            for beginning, loader in _PROGRAMS:
                if program.startswith(beginning):
                    return loader
    possible = [loader for loader in configured if boot_mode == "uefi" or loader != "systemd-boot"]
    return possible[0] if possible else "unknown"


LOADER_FILES = f'for file in {" ".join(_FILES)}; do [ ! -e "$file" ] || echo "$file"; done'
