"""A VM's definition rewritten for recovery: only what is known to be safe survives, all else is named as dropped.

The definition may come from a host that is no longer ours to trust: nothing in it may name a file of the new host, run
a program, reach a device or join a network that the operator did not map.
"""

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from tasks.errors import ConfigError
from tasks.model.domain_devices import DEVICES, SYSTEM
from tasks.model.domain_interface import rewrite_interface
from tasks.model.domain_whitelist import Wishes, keep
from tasks.model.domain_xml import GUEST_AGENT_CHANNEL, RECOVERY, parse_domain, read_tree, write_tree
from tasks.model.recovery_plan import ISOLATED

_CPU_OF_THE_HOST = frozenset({"host-passthrough", "host-model", "maximum"})
_RANDOM_SOURCES = frozenset({"/dev/urandom", "/dev/random"})
_VIDEO_MODELS = frozenset({"vga", "virtio", "bochs", "cirrus", "none"})
_BUSES = frozenset({"virtio", "scsi", "sata", "ide", "usb", "fdc"})


@dataclass(frozen=True)
class Rewritten:
    """A definition for the new host, and what of the old one is not in it (for warnings)."""

    xml: str
    dropped: tuple[str, ...]


def rewrite_for_recovery(text: str, wishes: Wishes) -> Rewritten:
    """The definition as it is wished for; ConfigError when it cannot be read, or lacks one of the wished disks."""
    old = read_tree(text)
    new = ET.Element("domain", {"type": wishes.domain_type})
    ET.SubElement(new, "name").text = wishes.name
    if wishes.uuid is not None:
        ET.SubElement(new, "uuid").text = wishes.uuid
    for child in old:
        if child.tag in ("name", "uuid", "devices"):
            continue
        kept = keep(child, SYSTEM.get(child.tag), wishes, child.tag)
        if kept is not None:
            new.append(kept)
    if wishes.run is not None:
        mark = {"run": wishes.run} | ({"isolated": "yes"} if wishes.isolated else {})
        ET.SubElement(ET.SubElement(new, "metadata"), f"{{{RECOVERY}}}recovery", mark)
    _boot_files(old, new, wishes)
    _firmware(old, new, wishes)
    _machine(new, wishes)
    _cpu(new, wishes)
    new.append(_devices(old, wishes))
    ET.indent(new, "  ")
    return Rewritten(write_tree(new), tuple(dict.fromkeys(wishes.dropped)))


def run_of(text: str) -> str | None:
    """The recovery that made a VM, by its definition; None for any other VM."""
    mark = _mark(text)
    return mark.get("run") if mark is not None else None


def is_isolated_copy(text: str) -> bool:
    """Whether a recovery made the VM apart from the one that it is of, and nobody has connected it since."""
    mark, cards = _mark(text), parse_domain(text).interfaces
    if mark is None or any(card.source != ISOLATED for card in cards):
        return False
    return bool(cards) or mark.get("isolated") == "yes"


def _mark(text: str) -> ET.Element | None:
    return read_tree(text).find(f"metadata/{{{RECOVERY}}}recovery")


def _boot_files(old: ET.Element, new: ET.Element, wishes: Wishes) -> None:
    """A kernel that the host starts is the image's own, put beside its disks: never one that the definition names."""
    system = new.find("os")
    if system is None:
        return
    for role in ("kernel", "initrd", "cmdline", "dtb"):
        text = old.findtext(f"os/{role}")
        path = text if role == "cmdline" and "kernel" in wishes.boot_files else wishes.boot_files.get(role)
        if text is not None and path is not None:
            ET.SubElement(system, role).text = path
            wishes.dropped.remove(f"os/{role}")


def _firmware(old: ET.Element, new: ET.Element, wishes: Wishes) -> None:
    """UEFI is asked for by name, so that libvirt finds the new host's own loader; `nvram` has its variables."""
    system, kept = old.find("os"), new.find("os")
    if system is None or kept is None:
        raise ConfigError("domain XML is incomplete", "<os> is missing", "take it again from libvirt")
    if system.get("firmware") != "efi" and system.find("loader") is None:
        return
    kept.set("firmware", "efi")
    loader = system.find("loader")
    if loader is not None and loader.get("secure") == "yes":
        ET.SubElement(kept, "loader", {"secure": "yes"})
    if wishes.nvram is not None:
        ET.SubElement(kept, "nvram").text = wishes.nvram
    else:
        wishes.dropped.append("os/nvram (UEFI variables: boot entries and keys)")


def _machine(new: ET.Element, wishes: Wishes) -> None:
    kind = new.find("os/type")
    if kind is not None and wishes.machine is not None:
        wishes.dropped.append(f"machine {kind.get('machine')} (is {wishes.machine} now)")
        kind.set("machine", wishes.machine)


def _cpu(new: ET.Element, wishes: Wishes) -> None:
    """Emulation can neither pass the host's CPU through nor offer Hyper-V's enlightenments."""
    if wishes.cpu_mode is not None and (old := new.find("cpu")) is not None:
        wishes.dropped.append(f"cpu {old.findtext('model') or old.get('mode')} (is {wishes.cpu_mode} now)")
        topology = old.findall("topology")
        old.clear()
        old.set("mode", wishes.cpu_mode)
        old.extend(topology)
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


def _devices(old: ET.Element, wishes: Wishes) -> ET.Element:
    devices = ET.Element("devices")
    if wishes.emulator is not None:
        ET.SubElement(devices, "emulator").text = wishes.emulator
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


def _plain(device: ET.Element, wishes: Wishes) -> ET.Element | None:
    return keep(device, DEVICES.get(device.tag), wishes, f"devices/{device.tag}")


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""


def _disk(device: ET.Element, wishes: Wishes) -> ET.Element | None:
    target = _target(device)
    where = f"devices/disk {target}"
    if target not in wishes.disks:
        kind = device.get("device", "disk")
        wishes.dropped.append(
            f"{where} ({'its medium and drive' if kind in ('cdrom', 'floppy') else 'not in the image'})"
        )
        return None
    kept = keep(device, DEVICES["disk"], wishes, where)
    if kept is None:
        return None
    volume = wishes.volumes.get(target)
    kept.attrib.update({"type": "volume" if volume else "file", "device": "disk"})
    driver = kept.find("driver")
    if driver is None:
        driver = ET.Element("driver")
        kept.insert(0, driver)
    driver.set("name", "qemu")
    driver.set("type", wishes.formats.get(target) or driver.get("type") or "raw")
    pool, _, name = (volume or "").partition("/")
    kept.insert(1, ET.Element("source", {"pool": pool, "volume": name} if volume else {"file": wishes.disks[target]}))
    bus = kept.find("target")
    if bus is not None and bus.get("bus") not in _BUSES:
        wishes.dropped.append(f"{where}/target/@bus {bus.get('bus')}")
        bus.set("bus", "virtio")
    return kept


def _terminal(device: ET.Element, wishes: Wishes) -> ET.Element | None:
    """A serial port or console as a terminal of the new host, wherever the old one led."""
    kept = keep(device, DEVICES[device.tag], wishes, f"devices/{device.tag}")
    if kept is not None:
        if (kind := device.get("type")) != "pty":
            wishes.dropped.append(f"devices/{device.tag} of type {kind} (is a pty now)")
        kept.set("type", "pty")
    return kept


def _channel(device: ET.Element, wishes: Wishes) -> ET.Element | None:
    target = device.find("target")
    name = target.get("name") if target is not None else None
    if name != GUEST_AGENT_CHANNEL:
        wishes.dropped.append(f"devices/channel {name}")
        return None
    kept = ET.Element("channel", {"type": "unix"})
    ET.SubElement(kept, "target", {"type": "virtio", "name": GUEST_AGENT_CHANNEL})
    return kept


def _graphics(device: ET.Element, wishes: Wishes) -> ET.Element:
    wishes.dropped.append(f"devices/graphics {device.get('type')} (is VNC on the host's loopback now)")
    return ET.Element("graphics", {"type": "vnc", "port": "-1", "autoport": "yes", "listen": "127.0.0.1"})


def _video(device: ET.Element, wishes: Wishes) -> ET.Element | None:
    kept = keep(device, DEVICES["video"], wishes, "devices/video")
    model = kept.find("model") if kept is not None else None
    if kept is None or model is None or model.get("type") in _VIDEO_MODELS:
        return kept
    wishes.dropped.append(f"devices/video model {model.get('type')} (is vga now)")
    model.attrib.clear()
    model.set("type", "vga")
    return kept


def _rng(device: ET.Element, wishes: Wishes) -> ET.Element | None:
    backend = device.find("backend")
    safe = backend is not None and backend.get("model") == "random" and (backend.text or "").strip() in _RANDOM_SOURCES
    if not safe:
        wishes.dropped.append("devices/rng (its source is not the kernel's)")
        return None
    return _plain(device, wishes)


def _tpm(device: ET.Element, wishes: Wishes) -> ET.Element | None:
    """An emulated TPM whose state came back; a TPM of the host is never passed through."""
    backend = device.find("backend")
    if not wishes.tpm or backend is None or backend.get("type") != "emulator":
        wishes.dropped.append("devices/tpm")
        return None
    kept = ET.Element("tpm", {"model": device.get("model", "tpm-crb")})
    emulator = ET.SubElement(kept, "backend", {"type": "emulator", "version": backend.get("version", "2.0")})
    if (sealed := backend.find("encryption")) is not None:
        ET.SubElement(emulator, "encryption", {"secret": sealed.get("secret", "")})
    return kept


_REWRITES = {
    "disk": _disk,
    "interface": rewrite_interface,
    "serial": _terminal,
    "console": _terminal,
    "channel": _channel,
    "graphics": _graphics,
    "video": _video,
    "rng": _rng,
    "tpm": _tpm,
}
