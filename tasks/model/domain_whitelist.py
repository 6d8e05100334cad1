"""How a definition passes the whitelist: what is asked of the new one, and what of the old one may stay."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.model.domain_devices import Spec

QUIET = frozenset({"alias", "emulator", "resource", "backingStore", "metadata", "genid", "seclabel"})
"""What is made anew on every host: nothing is lost by dropping it."""


@dataclass(frozen=True)
class Wishes:
    """What one new definition is to be; paths, volumes, machine and CPU are the new host's."""

    disks: Mapping[str, str]
    """Their paths by target: the VM has these and no others."""
    name: str
    uuid: str | None = None
    """None lets libvirt make a new one."""
    formats: Mapping[str, str] = field(default_factory=dict)
    """qcow2 or raw, by target, where it is no longer what the old definition says."""
    volumes: Mapping[str, str] = field(default_factory=dict)
    """`POOL/VOLUME` of the disks that are volumes of a pool there."""
    keep_macs: bool = True
    macs: Mapping[str, str] = field(default_factory=dict)
    """New MAC addresses by the old ones."""
    networks: Mapping[str, str] | None = None
    """`network:NAME`, `bridge:NAME` or `user` by old network or bridge (and `user`). A card that is not mapped keeps
    its place with its link down; None leaves all as they were."""
    domain_type: str = "kvm"
    emulator: str | None = None
    nvram: str | None = None
    """The path of the UEFI variables that came back."""
    boot_files: Mapping[str, str] = field(default_factory=dict)
    """Paths of the kernel, initrd and dtb that came back with the image."""
    tpm: bool = False
    """Whether the state of its emulated TPM came back."""
    machine: str | None = None
    cpu_mode: str | None = None
    run: str | None = None
    """Marks the VM as what that recovery made."""
    isolated: bool = False
    """Marks it as a copy that is kept apart from the VM that it is of."""
    dropped: list[str] = field(default_factory=list, init=False)
    """What of the old definition is not in the new one, noted on the way."""


def keep(element: ET.Element, spec: Spec | None, wishes: Wishes, where: str) -> ET.Element | None:
    """A copy with only what `spec` names; None, and a note, when nothing may stay."""
    if spec is None:
        if element.tag not in QUIET:
            wishes.dropped.append(shown(where))
        return None
    copy = ET.Element(element.tag)
    for key, value in element.attrib.items():
        if key in spec.attributes:
            copy.set(key, value)
        elif key not in spec.silently:
            wishes.dropped.append(shown(f"{where}/@{key}"))
    copy.text = (element.text or "").strip() if spec.text else None
    for child in element:
        kept = keep(child, spec.children.get(child.tag), wishes, f"{where}/{child.tag}")
        if kept is not None:
            copy.append(kept)
    return None if spec.gone else copy


def shown(where: str) -> str:
    """Where something stood, without the long name spaces of foreign elements."""
    return "/".join(part.rpartition("}")[2] if part.startswith("{") else part for part in where.split("/", 3))
