"""A network card of a VM on another host: connected to what the operator says, or with its link down."""

import xml.etree.ElementTree as ET

from tasks.errors import ConfigError
from tasks.model.domain_devices import DEVICES
from tasks.model.domain_whitelist import Wishes, keep


def rewrite_interface(device: ET.Element, wishes: Wishes) -> ET.Element | None:
    """The card with its model and place; its MAC and what it is connected to are as `wishes` says."""
    kept = keep(device, DEVICES["interface"], wishes, "devices/interface")
    if kept is None:
        return None
    kind, source = device.get("type", ""), device.find("source")
    named = (source.get("network") or source.get("bridge") or source.get("dev") or "") if source is not None else ""
    name = named or kind
    kept.attrib.pop("type", None)
    for mac in kept.findall("mac"):
        if not wishes.keep_macs:
            kept.remove(mac)
        elif (address := mac.get("address", "").lower()) in wishes.macs:
            mac.set("address", wishes.macs[address])
    networks = wishes.networks
    wanted = networks.get(name) if networks is not None else f"{kind}:{named}"
    if kind == "user" and (networks is None or wanted == "user"):
        kept.set("type", "user")
    elif wanted is not None and (networks is not None or (kind in ("network", "bridge") and named)):
        _connect(kept, wanted)
    else:
        wishes.dropped.append(f"devices/interface: {kind} {named!r} has no counterpart, its link is down")
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
