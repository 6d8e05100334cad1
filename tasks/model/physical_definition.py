"""A definition for a physical client that is rebuilt as a VM, made from its facts: no hypervisor ever knew it.

https://libvirt.org/formatdomain.html
"""

import uuid
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.errors import ConfigError, RecoveryRefused
from tasks.model.domain_xml import GUEST_AGENT_CHANNEL, write_tree
from tasks.model.facts import Facts
from tasks.model.facts_network import Interface

_ARCHITECTURES = {"x86_64": "x86_64", "i686": "x86_64"}
"""Which VM serves which client."""
_MIB = 1 << 20


def uuid_of(facts: Facts) -> str:
    """The UUID of the VM that a physical client becomes: the same each time, so that a second recovery sees the first.

    Not its machine-id: a program may keep that a secret (machine-id(5)).
    """
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"gbs-physical:{facts.machine_id or facts.hostname}"))


@dataclass(frozen=True)
class Machine:
    """What an operator decides of the new VM: the network of all its cards, and what the facts do not tell.

    `network` is `network:NAME` or `bridge:NAME` of the KVM host.
    """

    network: str
    memory_bytes: int | None = None
    processors: int | None = None
    domain_type: str = "kvm"

    def __post_init__(self) -> None:
        kind, _, source = self.network.partition(":")
        if kind not in ("network", "bridge") or not source:
            raise ConfigError("unknown network", self.network, "write network:NAME or bridge:NAME")


def physical_definition(facts: Facts, *, name: str, disks: Sequence[str], machine: Machine) -> str:
    """A domain definition with the client's memory, processors, boot mode and the MACs of its cards in use.

    `disks` are paths of qcow2 files in the order of the client's disks (vda, vdb ...). RecoveryRefused when neither
    facts nor `machine` say how much memory and how many processors, and for an architecture that no such VM has.
    """
    what = f"client {name}"
    memory_bytes, processors = machine.memory_bytes or facts.memory_bytes, machine.processors or facts.processors
    if not memory_bytes or not processors:
        fix = "say it with --memory and --processors"
        raise RecoveryRefused(what, "its facts do not tell its memory and processors", fix)
    if facts.architecture not in _ARCHITECTURES:
        raise RecoveryRefused(
            what, f"no VM has its architecture, {facts.architecture}", "rebuild it on a machine like it"
        )
    domain = ET.Element("domain", {"type": machine.domain_type})
    _text(domain, "name", name)
    _text(domain, "uuid", uuid_of(facts))
    _text(domain, "memory", str(-(-memory_bytes // _MIB)), unit="MiB")
    _text(domain, "vcpu", str(processors))
    system = ET.SubElement(domain, "os", {"firmware": "efi"} if facts.boot_mode == "uefi" else {})
    _text(system, "type", "hvm", arch=_ARCHITECTURES[facts.architecture], machine="q35")
    ET.SubElement(system, "boot", {"dev": "hd"})
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    if machine.domain_type == "kvm":
        ET.SubElement(domain, "cpu", {"mode": "host-model"})
    ET.SubElement(domain, "clock", {"offset": "utc"})
    domain.append(_devices(facts, disks, machine.network))
    ET.indent(domain, "  ")
    return write_tree(domain)


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def _devices(facts: Facts, disks: Sequence[str], network: str) -> ET.Element:
    devices = ET.Element("devices")
    for number, path in enumerate(disks):
        disk = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
        ET.SubElement(disk, "driver", {"name": "qemu", "type": "qcow2", "discard": "unmap"})
        ET.SubElement(disk, "source", {"file": path})
        ET.SubElement(disk, "target", {"dev": target_of(number), "bus": "virtio"})
    kind, _, source = network.partition(":")
    for card in cards_in_use(facts):
        interface = ET.SubElement(devices, "interface", {"type": kind})
        ET.SubElement(interface, "mac", {"address": card.mac or ""})
        ET.SubElement(interface, "source", {kind: source})
        ET.SubElement(interface, "model", {"type": "virtio"})
    ET.SubElement(ET.SubElement(devices, "serial", {"type": "pty"}), "target", {"port": "0"})
    channel = ET.SubElement(devices, "channel", {"type": "unix"})
    ET.SubElement(channel, "target", {"type": "virtio", "name": GUEST_AGENT_CHANNEL})
    ET.SubElement(devices, "graphics", {"type": "vnc", "port": "-1", "autoport": "yes", "listen": "127.0.0.1"})
    ET.SubElement(ET.SubElement(devices, "video"), "model", {"type": "vga"})
    random = ET.SubElement(devices, "rng", {"model": "virtio"})
    _text(random, "backend", "/dev/urandom", model="random")
    return devices


def target_of(number: int) -> str:
    """libvirt's target of a virtio disk, from 0: vda, vdb ..., vdz, vdaa."""
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return f"vd{letters}"


def cards_in_use(facts: Facts) -> list[Interface]:
    """The physical cards that have an address, a VLAN on them, or a part in a bond or bridge; all when none has."""
    rows = facts.interfaces or ()
    cards = [row for row in rows if not row.kind and row.mac]
    carrying = {row.link for row in rows if row.link}
    used = [card for card in cards if card.addresses or card.master or card.name in carrying]
    return used or cards
