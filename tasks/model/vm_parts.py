"""What a VM is made of besides its disks: what its definition names on the host, and what an image keeps of it."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from tasks.model.domain_xml import read_tree


@dataclass(frozen=True)
class NamedParts:
    """What a definition names. Paths are the host's, as they are; they are only ever words of an argv."""

    files: tuple[tuple[str, str], ...]
    """(role, path): `nvram` (UEFI variables), `kernel`, `initrd`, `dtb`."""
    tpm: bool
    networks: tuple[str, ...]
    pools: tuple[str, ...]
    secrets: tuple[tuple[str, str], ...]
    """(attribute, value): how each secret is named, by `uuid` or by `usage`."""


def named_parts(text: str) -> NamedParts:
    """What of the host a definition refers to; ConfigError as `read_tree`."""
    root = read_tree(text)
    files = [(role, (root.findtext(f"os/{role}") or "").strip()) for role in ("nvram", "kernel", "initrd", "dtb")]
    return NamedParts(
        files=tuple((role, path) for role, path in files if path.startswith("/")),
        tpm=root.find("devices/tpm/backend[@type='emulator']") is not None,
        networks=_names(root, "devices/interface/source", "network"),
        pools=_names(root, "devices/disk/source", "pool"),
        secrets=tuple(dict.fromkeys(_secrets(root))),
    )


def _names(root: ET.Element, path: str, attribute: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for element in root.findall(path) if (name := element.get(attribute))))


def _secrets(root: ET.Element) -> list[tuple[str, str]]:
    found = [(name, value) for secret in root.iter("secret") for name, value in secret.attrib.items() if name != "type"]
    return found + [("uuid", value) for element in root.iter("encryption") if (value := element.get("secret"))]
