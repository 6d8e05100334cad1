"""A libvirt domain definition: what we read from it, and the one edit that we make in place.

Definitions come from hosts and from backups, so they are hostile until parsed: no document type (hence no entities and
nothing fetched), bounded in size and depth. https://libvirt.org/formatdomain.html
"""

import xml.etree.ElementTree as ET  # DOCTYPE is refused below: no entities, nothing external
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tasks.errors import ConfigError

MAX_BYTES = 4 << 20
MAX_DEPTH = 64
GUEST_AGENT_CHANNEL = "org.qemu.guest_agent.0"
RECOVERY = "urn:gbs:recovery"
"""The namespace of what a recovered VM's metadata says of its recovery."""
SourceKind = Literal["file", "block", "volume"]
_NAMESPACES = {
    "qemu": "http://libvirt.org/schemas/domain/qemu/1.0",
    "libosinfo": "http://libosinfo.org/xmlns/libvirt/domain/1.0",
    "gbs": RECOVERY,
}
_SOURCE_ATTRIBUTE = {"file": "file", "block": "dev", "network": "name", "dir": "dir", "vhostuser": "path"}


@dataclass(frozen=True)
class Mirror:
    """A block job on a disk: its kind (`active-commit`, `copy`), whether it may pivot, and the file it writes."""

    job: str
    ready: bool
    destination: str | None = None


@dataclass(frozen=True)
class Disk:
    """One disk as libvirt sees it; `source` is None for an empty drive, `format` None where libvirt states none.

    The source of a pool's volume is `POOL/VOLUME`, a network disk's its name there, anything else's a path of the host.
    """

    target: str
    device: str = "disk"
    type: str = "file"
    source: str | None = None
    format: str | None = None
    readonly: bool = False
    shareable: bool = False
    transient: bool = False
    encrypted: bool = False
    bus: str | None = None
    backing: tuple[str, ...] = ()
    """What lies below the source, nearest first; only the live definition of a running VM is sure to tell."""
    mirror: Mirror | None = None


@dataclass(frozen=True)
class Interface:
    """A network card: `kind` as libvirt's type (network, bridge, user …), `source` the network, bridge or device."""

    kind: str
    source: str = ""
    mac: str = ""


@dataclass(frozen=True)
class Domain:
    """What a definition says about a VM."""

    name: str
    uuid: str
    type: str
    disks: tuple[Disk, ...]
    arch: str | None = None
    machine: str | None = None
    firmware: Literal["bios", "efi"] = "bios"
    loader: str | None = None
    nvram: str | None = None
    guest_agent: bool = False
    tpm: bool = False
    tpm_secret: str | None = None
    """The UUID of libvirt's secret that its emulated TPM's state is encrypted with."""
    interfaces: tuple[Interface, ...] = ()
    cpu_mode: str = ""
    cpu_model: str = ""

    @property
    def networks(self) -> tuple[str, ...]:
        """What its network cards are connected to, by name."""
        return tuple(card.source for card in self.interfaces if card.source)

    @property
    def macs(self) -> tuple[str, ...]:
        """The addresses of its network cards."""
        return tuple(card.mac for card in self.interfaces if card.mac)

    def disk(self, target: str) -> Disk | None:
        """The disk with that target, or None."""
        return next((disk for disk in self.disks if disk.target == target), None)


class _Builder(ET.TreeBuilder):
    """Builds the tree, and refuses what a definition never has."""

    def __init__(self, *, comments: bool) -> None:
        super().__init__(insert_comments=comments, insert_pis=False)
        self._depth = 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ConfigError("domain XML has a document type", name, "libvirt never writes one: refuse the file")

    def start(self, tag: str, attrs: dict[str, str]) -> ET.Element:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ConfigError("domain XML is nested too deep", tag, f"at most {MAX_DEPTH} levels are read")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ET.Element:
        self._depth -= 1
        return super().end(tag)


def read_tree(text: str, *, comments: bool = False, root_tag: str = "domain") -> ET.Element:
    """The root of a domain definition, or of another document of libvirt's.

    ConfigError when it is malformed, huge, has a DOCTYPE or is something else.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError("domain XML is too large", f"{len(text)} characters", f"at most {MAX_BYTES} are read")
    try:
        parser = ET.XMLParser(target=_Builder(comments=comments))  # noqa: S314 - _Builder refuses the document type
        parser.feed(text)
        root: ET.Element = parser.close()
    except (ET.ParseError, UnicodeEncodeError, ValueError) as exc:
        raise ConfigError("domain XML is malformed", str(exc), "take it again from libvirt (virsh dumpxml)") from exc
    if root.tag != root_tag:
        raise ConfigError(f"not a {root_tag} definition", f"<{root.tag}>", f"the root must be <{root_tag}>")
    return root


def write_tree(root: ET.Element) -> str:
    """A definition as text, with libvirt's usual namespace prefixes."""
    for prefix, uri in _NAMESPACES.items():
        ET.register_namespace(prefix, uri)
    return ET.tostring(root, encoding="unicode") + "\n"


def parse_domain(text: str) -> Domain:
    """What a domain definition says; ConfigError as for `read_tree`, and when name or UUID are missing."""
    root = read_tree(text)
    name, uuid = root.findtext("name"), (root.findtext("uuid") or "").strip().lower()
    if not name or not uuid:
        missing = "name" if not name else "uuid"
        raise ConfigError("domain XML is incomplete", f"<{missing}> is missing", "take it again from libvirt")
    kind = root.find("os/type")
    loader, nvram = root.findtext("os/loader"), root.findtext("os/nvram")
    os_element = root.find("os")
    efi = (os_element is not None and os_element.get("firmware") == "efi") or loader is not None
    cpu, sealed = root.find("cpu"), root.find("devices/tpm/backend/encryption")
    return Domain(
        name=name,
        uuid=uuid,
        type=root.get("type", ""),
        disks=tuple(_disk(element) for element in root.findall("devices/disk")),
        arch=kind.get("arch") if kind is not None else None,
        machine=kind.get("machine") if kind is not None else None,
        firmware="efi" if efi else "bios",
        loader=loader,
        nvram=nvram,
        guest_agent=any(target.get("name") == GUEST_AGENT_CHANNEL for target in root.findall("devices/channel/target")),
        tpm=root.find("devices/tpm") is not None,
        tpm_secret=sealed.get("secret") if sealed is not None else None,
        interfaces=tuple(_interface(element) for element in root.findall("devices/interface")),
        cpu_mode=cpu.get("mode", "") if cpu is not None else "",
        cpu_model=(root.findtext("cpu/model") or "").strip(),
    )


def _interface(element: ET.Element) -> Interface:
    source, mac = element.find("source"), element.find("mac")
    named = (source.get("network") or source.get("bridge") or source.get("dev")) if source is not None else None
    return Interface(element.get("type", ""), named or "", (mac.get("address", "") if mac is not None else "").lower())


def _disk(element: ET.Element) -> Disk:
    target, driver, mirror = element.find("target"), element.find("driver"), element.find("mirror")
    if target is None or not target.get("dev"):
        raise ConfigError("domain XML is incomplete", "a disk has no target", "take it again from libvirt")
    kind = element.get("type", "file")
    return Disk(
        target=target.get("dev", ""),
        device=element.get("device", "disk"),
        type=kind,
        source=_source(element),
        format=driver.get("type") if driver is not None else None,
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        transient=element.find("transient") is not None,
        encrypted=next(element.iter("encryption"), None) is not None,
        bus=target.get("bus"),
        backing=tuple(_backing(element)),
        mirror=_mirror(mirror) if mirror is not None else None,
    )


def _mirror(element: ET.Element) -> Mirror:
    return Mirror(element.get("job", ""), element.get("ready") == "yes", _source(element))


def _source(element: ET.Element) -> str | None:
    source = element.find("source")
    if source is None:
        return None
    kind = element.get("type", "file")
    if kind == "volume":
        return f"{source.get('pool')}/{source.get('volume')}"
    return source.get(_SOURCE_ATTRIBUTE.get(kind, "file"))


def _backing(element: ET.Element) -> Iterator[str]:
    below = element.find("backingStore")
    while below is not None:
        if (source := _source(below)) is not None:
            yield source
        below = below.find("backingStore")


def names_path(text: str, path: str) -> bool:
    """Whether a definition names `path` anywhere: as a source, in a backing chain, in a job, or by any other role."""
    return any(
        path in (value, (element.text or "").strip())
        for element in read_tree(text).iter()
        for value in ("", *element.attrib.values())
    )


def names_file(text: str, path: str, volume: str = "") -> bool:
    """As `names_path`; or whether one of its disks is `volume`, POOL/VOLUME of a pool, which names no path."""
    return names_path(text, path) or (bool(volume) and volume in {disk.source for disk in parse_domain(text).disks})


def set_disk_source(text: str, target: str, kind: SourceKind, source: str, disk_format: str) -> str:
    """The definition with the disk `target` on `source` (as `Disk.source`) of that kind and format, all else untouched.

    What libvirt noted about the old source (backing chain, its index, its slices) goes. ConfigError without the disk.
    """
    root = read_tree(text, comments=True)
    for element in root.findall("devices/disk"):
        found = element.find("target")
        if found is not None and found.get("dev") == target:
            _replace_source(element, kind, source, disk_format)
            return write_tree(root)
    raise ConfigError("domain XML lacks a disk", target, "the definition was changed meanwhile: look at it")


def _replace_source(element: ET.Element, kind: SourceKind, name: str, disk_format: str) -> None:
    for tag in ("backingStore", "mirror"):
        for child in element.findall(tag):
            element.remove(child)
    element.set("type", kind)
    driver, source = element.find("driver"), element.find("source")
    if driver is None:
        driver = ET.Element("driver", {"name": "qemu"})
        element.insert(0, driver)
    driver.set("type", disk_format)
    if source is None:
        source = ET.Element("source")
        element.insert(1, source)
    source.attrib.clear()
    for tag in ("slices", "reservations"):
        for child in source.findall(tag):
            source.remove(child)
    if kind == "volume":
        pool, _, volume = name.partition("/")
        source.attrib.update({"pool": pool, "volume": volume})
    else:
        source.set(_SOURCE_ATTRIBUTE[kind], name)
