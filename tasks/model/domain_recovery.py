"""A VM's definition rewritten for recovery: only what is known to be safe survives, all else is named as dropped.

The definition may come from a host that is no longer ours to trust: nothing in it may name a file of the new host, run
a program, reach a device or join a network that the operator did not map.
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.errors import ConfigError
from tasks.model.domain_devices import DEVICES, SYSTEM, Spec
from tasks.model.domain_xml import GUEST_AGENT_CHANNEL, read_tree, write_tree

_QUIET = frozenset({"alias", "emulator", "resource", "backingStore", "metadata", "genid", "seclabel"})
"""What is made anew on every host: nothing is lost by dropping it."""
_CPU_OF_THE_HOST = frozenset({"host-passthrough", "host-model", "maximum"})
_RANDOM_SOURCES = frozenset({"/dev/urandom", "/dev/random"})
_VIDEO_MODELS = frozenset({"vga", "virtio", "bochs", "cirrus", "none"})
_BUSES = frozenset({"virtio", "scsi", "sata", "ide", "usb", "fdc"})


@dataclass(frozen=True)
class Rewritten:
    """A definition for the new host, and what of the old one is not in it (for warnings)."""

    xml: str
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class _Wishes:
    disks: Mapping[str, str]
    formats: Mapping[str, str]
    keep_macs: bool
    networks: Mapping[str, str] | None
    domain_type: str
    dropped: list[str] = field(default_factory=list)


def rewrite_for_recovery(
    text: str,
    disks: Mapping[str, str],
    *,
    name: str,
    uuid: str | None = None,
    keep_macs: bool = True,
    networks: Mapping[str, str] | None = None,
    emulator: str | None = None,
    domain_type: str = "kvm",
    formats: Mapping[str, str] | None = None,
    nvram: str | None = None,
) -> Rewritten:
    """A definition named `name` whose disks are the files of `disks` (target → path on the new host), and no others.

    `formats` says qcow2 or raw per target where it is no longer what the old definition says. `networks` maps old
    networks and bridges to `network:NAME`, `bridge:NAME` or `user`; an interface that is not mapped keeps its place
    with its link down. Without `networks` all stay as they were. Without `uuid` libvirt makes a new one. ConfigError
    when the definition cannot be read, or lacks one of the targets.
    """
    old = read_tree(text)
    wishes = _Wishes(disks, formats or {}, keep_macs, networks, domain_type)
    new = ET.Element("domain", {"type": domain_type})
    ET.SubElement(new, "name").text = name
    if uuid is not None:
        ET.SubElement(new, "uuid").text = uuid
    for child in old:
        if child.tag in ("name", "uuid", "devices"):
            continue
        kept = _keep(child, SYSTEM.get(child.tag), wishes, child.tag)
        if kept is not None:
            new.append(kept)
    _firmware(old, new, wishes, nvram)
    _cpu(new, wishes)
    new.append(_devices(old, wishes, emulator))
    ET.indent(new, "  ")
    return Rewritten(write_tree(new), tuple(dict.fromkeys(wishes.dropped)))


def _keep(element: ET.Element, spec: Spec | None, wishes: _Wishes, where: str) -> ET.Element | None:
    """A copy with only what `spec` names; None, and a note, when nothing may stay."""
    if spec is None:
        if element.tag not in _QUIET:
            wishes.dropped.append(_shown(where))
        return None
    copy = ET.Element(element.tag)
    for key, value in element.attrib.items():
        if key in spec.attributes:
            copy.set(key, value)
        elif key not in spec.silently:
            wishes.dropped.append(_shown(f"{where}/@{key}"))
    copy.text = (element.text or "").strip() if spec.text else None
    for child in element:
        kept = _keep(child, spec.children.get(child.tag), wishes, f"{where}/{child.tag}")
        if kept is not None:
            copy.append(kept)
    return None if spec.gone else copy


def _shown(where: str) -> str:
    """Where something stood, without the long name spaces of foreign elements."""
    return "/".join(part.rpartition("}")[2] if part.startswith("{") else part for part in where.split("/", 3))


def _firmware(old: ET.Element, new: ET.Element, wishes: _Wishes, nvram: str | None) -> None:
    """UEFI is asked for by name, so that libvirt finds the new host's own loader; its variables come with `nvram`."""
    system, kept = old.find("os"), new.find("os")
    if system is None or kept is None:
        raise ConfigError("domain XML is incomplete", "<os> is missing", "take it again from libvirt")
    if system.get("firmware") != "efi" and system.find("loader") is None:
        return
    kept.set("firmware", "efi")
    loader = system.find("loader")
    if loader is not None and loader.get("secure") == "yes":
        ET.SubElement(kept, "loader", {"secure": "yes"})
    if nvram is not None:
        ET.SubElement(kept, "nvram").text = nvram
    else:
        wishes.dropped.append("os/nvram (UEFI variables: boot entries and keys)")


def _cpu(new: ET.Element, wishes: _Wishes) -> None:
    """Emulation can neither pass the host's CPU through nor offer Hyper-V's enlightenments."""
    if wishes.domain_type != "qemu":
        return
    cpu = new.find("cpu")
    if cpu is not None and cpu.get("mode") in _CPU_OF_THE_HOST:
        new.remove(cpu)
        wishes.dropped.append(f"cpu mode {cpu.get('mode')} (not possible without KVM)")
    features = new.find("features")
    if features is None:
        return
    for tag in ("hyperv", "kvm", "pvspinlock"):
        for feature in features.findall(tag):
            features.remove(feature)
            wishes.dropped.append(f"features/{tag} (not possible without KVM)")


def _devices(old: ET.Element, wishes: _Wishes, emulator: str | None) -> ET.Element:
    devices = ET.Element("devices")
    if emulator is not None:
        ET.SubElement(devices, "emulator").text = emulator
    found = set()
    for device in old.findall("devices/*"):
        rewrite = _REWRITES.get(device.tag, _plain)
        kept = rewrite(device, wishes)
        if kept is not None:
            devices.append(kept)
            if kept.tag == "disk":
                found.add(_target(kept))
    if missing := sorted(set(wishes.disks) - found):
        raise ConfigError("domain XML lacks disks of the image", ", ".join(missing), "the image is of another VM")
    return devices


def _plain(device: ET.Element, wishes: _Wishes) -> ET.Element | None:
    return _keep(device, DEVICES.get(device.tag), wishes, f"devices/{device.tag}")


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""


def _disk(device: ET.Element, wishes: _Wishes) -> ET.Element | None:
    target = _target(device)
    where = f"devices/disk {target}"
    if target not in wishes.disks:
        kind = device.get("device", "disk")
        wishes.dropped.append(
            f"{where} ({'its medium and drive' if kind in ('cdrom', 'floppy') else 'not in the image'})"
        )
        return None
    kept = _keep(device, DEVICES["disk"], wishes, where)
    if kept is None:
        return None
    kept.attrib.update({"type": "file", "device": "disk"})
    driver = kept.find("driver")
    if driver is None:
        driver = ET.Element("driver")
        kept.insert(0, driver)
    driver.set("name", "qemu")
    driver.set("type", wishes.formats.get(target) or driver.get("type") or "raw")
    kept.insert(1, ET.Element("source", {"file": wishes.disks[target]}))
    bus = kept.find("target")
    if bus is not None and bus.get("bus") not in _BUSES:
        wishes.dropped.append(f"{where}/target/@bus {bus.get('bus')}")
        bus.set("bus", "virtio")
    return kept


def _interface(device: ET.Element, wishes: _Wishes) -> ET.Element | None:
    kept = _keep(device, DEVICES["interface"], wishes, "devices/interface")
    if kept is None:
        return None
    kind, source = device.get("type", ""), device.find("source")
    name = (source.get("network") or source.get("bridge") or source.get("dev") or "") if source is not None else ""
    kept.attrib.pop("type", None)
    if not wishes.keep_macs:
        for mac in kept.findall("mac"):
            kept.remove(mac)
    if kind == "user" and (wishes.networks is None or "user" in wishes.networks.values()):
        kept.set("type", "user")
        return kept
    if wishes.networks is None and kind in ("network", "bridge") and name:
        _connect(kept, f"{kind}:{name}")
    elif wishes.networks is not None and name in wishes.networks:
        _connect(kept, wishes.networks[name])
    else:
        wishes.dropped.append(f"devices/interface: {kind} {name!r} has no counterpart, its link is down")
        _connect(kept, "user")
        for link in kept.findall("link"):
            kept.remove(link)
        ET.SubElement(kept, "link", {"state": "down"})
    return kept


def _connect(interface: ET.Element, network: str) -> None:
    """Put an interface on `network:NAME`, `bridge:NAME` or `user`."""
    kind, _, name = network.partition(":")
    if kind not in ("network", "bridge", "user") or (kind != "user" and not name):
        raise ConfigError("unknown network", network, "write network:NAME, bridge:NAME or user")
    for tag in ("backend", "portForward", "ip"):
        for child in interface.findall(tag):
            interface.remove(child)
    interface.set("type", kind)
    if kind != "user":
        interface.insert(0, ET.Element("source", {kind: name}))


def _terminal(device: ET.Element, wishes: _Wishes) -> ET.Element | None:
    """A serial port or console as a terminal of the new host, wherever the old one led."""
    kept = _keep(device, DEVICES[device.tag], wishes, f"devices/{device.tag}")
    if kept is not None:
        if (kind := device.get("type")) != "pty":
            wishes.dropped.append(f"devices/{device.tag} of type {kind} (is a pty now)")
        kept.set("type", "pty")
    return kept


def _channel(device: ET.Element, wishes: _Wishes) -> ET.Element | None:
    target = device.find("target")
    name = target.get("name") if target is not None else None
    if name != GUEST_AGENT_CHANNEL:
        wishes.dropped.append(f"devices/channel {name}")
        return None
    kept = ET.Element("channel", {"type": "unix"})
    ET.SubElement(kept, "target", {"type": "virtio", "name": GUEST_AGENT_CHANNEL})
    return kept


def _graphics(device: ET.Element, wishes: _Wishes) -> ET.Element:
    wishes.dropped.append(f"devices/graphics {device.get('type')} (is VNC on the host's loopback now)")
    return ET.Element("graphics", {"type": "vnc", "port": "-1", "autoport": "yes", "listen": "127.0.0.1"})


def _video(device: ET.Element, wishes: _Wishes) -> ET.Element | None:
    kept = _keep(device, DEVICES["video"], wishes, "devices/video")
    model = kept.find("model") if kept is not None else None
    if kept is None or model is None or model.get("type") in _VIDEO_MODELS:
        return kept
    wishes.dropped.append(f"devices/video model {model.get('type')} (is vga now)")
    model.attrib.clear()
    model.set("type", "vga")
    return kept


def _rng(device: ET.Element, wishes: _Wishes) -> ET.Element | None:
    backend = device.find("backend")
    safe = backend is not None and backend.get("model") == "random" and (backend.text or "").strip() in _RANDOM_SOURCES
    if not safe:
        wishes.dropped.append("devices/rng (its source is not the kernel's)")
        return None
    return _plain(device, wishes)


_REWRITES = {
    "disk": _disk,
    "interface": _interface,
    "serial": _terminal,
    "console": _terminal,
    "channel": _channel,
    "graphics": _graphics,
    "video": _video,
    "rng": _rng,
}
