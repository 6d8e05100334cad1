"""Facts: network interfaces and routes (iproute2), and resolvers."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tasks.model.fact import FactRow

_LASTING = frozenset(("", "bond", "bridge", "macvlan", "team", "unknown", "vlan", "vrf", "vxlan", "wireguard"))
_OF_CONTAINERS = re.compile(r"br-[0-9a-f]{12}|kube-ipvs\d+")
"""Docker's own networks, and kube-proxy's interface with an address for each service."""
_LINK = re.compile(r"\d+: (?P<name>[^\s@]+)(?:@(?P<link>\S+))?: <[^>]*> (?P<rest>.*)")
_ADDRESS = re.compile(
    r"\d+: (?P<name>\S+) +inet6? (?P<local>[^\s/]+)(?: peer [^\s/]+)?(?:/(?P<prefix>\d+))? (?P<rest>.*)"
)


class Address(FactRow):
    """An address with its prefix length; `dynamic` ones are from DHCP or router advertisements."""

    address: str
    dynamic: bool = False


class Interface(FactRow):
    """A network interface. `kind` is empty for a physical one; `mac` is its own, not the one a bond gave it.

    `kind` is `unknown` where busybox's ip is all there is.

    `link` is the interface that a VLAN lies on, `master` the bond or bridge that this one belongs to. Addresses that
    the kernel makes by itself (link-local IPv6, loopback) are left out.
    """

    name: str
    kind: str = ""
    mac: str | None = None
    mtu: int
    link: str | None = None
    master: str | None = None
    vlan_id: int | None = None
    bond_mode: str | None = None
    addresses: tuple[Address, ...] = ()


class Route(FactRow):
    """A way over a gateway; one of several next hops is a row of its own."""

    destination: str
    gateway: str
    device: str
    metric: int | None = None
    dynamic: bool = False


class Resolvers(FactRow):
    """The name servers in their order, and the domains that short names are looked for in."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


def parse_interfaces(text: str) -> tuple[Interface, ...]:
    """Interfaces by name, from `ip -j -d address`, or from `ip -o -d link; ip -o address` of an iproute2 without JSON.

    What VMs and containers bring (taps, veths, Docker's bridges) is left out, unless an address of the client's own is
    on it: in a container, the veth is the network.
    """
    rows = _json_rows(text) if text.lstrip().startswith("[") else _text_rows(text)
    kept = {row.name: row for row in rows if row.kind in _LASTING or row.addresses}
    return tuple(kept[name] for name in sorted(kept) if not _OF_CONTAINERS.fullmatch(name))


def _json_rows(text: str) -> Iterator[Interface]:
    for row in json.loads(text):
        if not row:  # iproute2 4.x leaves an empty object for what it filtered
            continue
        info = row.get("linkinfo") or {}
        data, slave = info.get("info_data") or {}, info.get("info_slave_data") or {}
        kind = info.get("info_kind", "")
        yield Interface(
            name=row["ifname"],
            kind="loopback" if row.get("link_type") == "loopback" else kind,
            mac=(row.get("permaddr") or slave.get("perm_hwaddr") or row.get("address"))
            if row.get("link_type") == "ether"
            else None,
            mtu=row["mtu"],
            link=row.get("link"),
            master=row.get("master"),
            vlan_id=data.get("id") if kind == "vlan" else None,
            bond_mode=data.get("mode") if kind == "bond" else None,
            addresses=tuple(_json_addresses(row)),
        )


def _json_addresses(row: Mapping[str, Any]) -> Iterator[Address]:
    for found in row.get("addr_info", ()):
        if found and _own(found["local"], found.get("scope", "")):
            dynamic = bool(found.get("dynamic") or found.get("temporary"))
            yield Address(address=f"{found['local']}/{found['prefixlen']}", dynamic=dynamic)


def _own(address: str, scope: str) -> bool:
    return scope != "host" and not (scope == "link" and ":" in address)


def _text_rows(text: str) -> list[Interface]:
    rows: dict[str, Interface] = {}
    addresses: dict[str, list[Address]] = {}
    for line in text.splitlines():
        if found := _LINK.match(line):
            rows[found["name"]] = _text_row(found["name"], found["link"], found["rest"])
        elif found := _ADDRESS.match(line):
            words = found["rest"].split("\\")[0].split()
            prefix = found["prefix"] or ("128" if ":" in found["local"] else "32")
            if _own(found["local"], _after(words, "scope") or ""):
                dynamic = not {"dynamic", "temporary"}.isdisjoint(words)
                own = Address(address=f"{found['local']}/{prefix}", dynamic=dynamic)
                addresses.setdefault(found["name"], []).append(own)
    if not rows:
        raise ValueError("there is no interface in it, not even lo")
    return [row.model_copy(update={"addresses": tuple(addresses.get(name, ()))}) for name, row in rows.items()]


def _text_row(name: str, link: str | None, rest: str) -> Interface:
    """An interface from a line of `ip -o -d link`: its parts are set apart by backslashes, a kind begins one."""
    first, *parts = [part.split() for part in rest.split("\\")]
    medium = parts[0] if parts else []
    kinds = [part for part in parts[1:] if part and part[0] in (_LASTING | {"veth", "tun", "dummy", "ifb"})]
    words = kinds[0] if kinds else []
    kind = words[0] if words else "" if "promiscuity" in medium else "unknown"
    in_container = link is not None and re.fullmatch(r"if\d+", link) is not None
    if medium[:1] == ["link/loopback"]:
        kind = "loopback"
    elif not words and in_container:
        kind = "veth"
    vlan_id = _after(words, "id") if kind == "vlan" else None
    return Interface(
        name=name,
        kind=kind,
        mac=_after(medium, "permaddr") or medium[1] if medium[:1] == ["link/ether"] else None,
        mtu=int(_after(first, "mtu") or 0),
        link=None if in_container else link,
        master=_after(first, "master"),
        vlan_id=int(vlan_id) if vlan_id else None,
        bond_mode=_after(words, "mode") if kind == "bond" else None,
    )


def parse_routes(text: str) -> tuple[Route, ...]:
    """Routes over a gateway, from `ip -o route; ip -o -6 route`: this text is the same in every iproute2."""
    return tuple(route for line in text.splitlines() for route in _routes(line.replace("\\", " ")))


def _routes(line: str) -> Iterator[Route]:
    whole, *hops = [part.split() for part in re.split(r"\bnexthop\b", line)]
    for hop in hops or [whole]:
        gateway, device, metric = _after(hop, "via"), _after(hop, "dev"), _after(whole, "metric")
        if gateway in ("inet", "inet6"):
            gateway = _after(hop, gateway)
        if gateway and device:
            yield Route(
                destination=whole[0],
                gateway=gateway,
                device=device,
                metric=int(metric) if metric else None,
                dynamic=_after(whole, "proto") in ("dhcp", "ra", "redirect"),
            )


def _after(words: list[str], key: str) -> str | None:
    """The word that follows `key`."""
    places = [place for place, word in enumerate(words[:-1]) if word == key]
    return words[places[0] + 1] if places else None


def parse_resolvers(text: str) -> Resolvers:
    """The `nameserver` and `search` (or `domain`) lines of resolv.conf(5); the last of `search` counts."""
    nameservers: list[str] = []
    search: tuple[str, ...] = ()
    for words in map(str.split, text.splitlines()):
        if words[:1] == ["nameserver"]:
            nameservers += words[1:2]
        elif words[:1] in (["search"], ["domain"]):
            search = tuple(words[1:])
    return Resolvers(nameservers=tuple(nameservers), search=search)


INTERFACES = "ip -j -d address 2> /dev/null || { { ip -o -d link 2> /dev/null || ip -o link; } && ip -o address; }"
"""JSON came with iproute2 4.13 (2017); busybox's ip knows neither it nor -d."""
ROUTES = """{ ip -o route && ip -o -6 route; } |
grep -v -E ' proto (kernel|babel|bgp|bird|eigrp|gated|isis|mrt|ospf|rip|xorp|zebra)( |$)'"""
"""What the kernel and routing daemons make by themselves is left out on the client: it may be a million routes."""
RESOLVERS = "cat /run/systemd/resolve/resolv.conf 2> /dev/null || cat /etc/resolv.conf"
"""systemd-resolved shows programs only itself, and the real ones there (systemd-resolved.service(8))."""
