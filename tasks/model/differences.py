"""What differs between two nights of a client and is in no shape: any image of the flavour serves, but what is rebuilt
by hand must be like it.

Only what both nights know is compared. Kernel names of disks may change at every boot and are not looked at; leased
addresses and learned routes neither.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain

from tasks.model.facts import Facts
from tasks.model.facts_lvm import VolumeGroup
from tasks.model.facts_md import MdArray
from tasks.model.facts_mounts import CrypttabEntry, FstabEntry
from tasks.model.facts_network import Interface, Resolvers, Route
from tasks.model.names import human_bytes
from tasks.model.shape import NOTHING, Point

SHOWN = 20
"""Points of one topic: a client whose network was rebuilt should not bury what else has changed."""
_Topic = Mapping[str, str] | None


def differences(last: Facts, now: Facts) -> list[Point]:
    """The points that differ, from `last` (as the template) to `now` (as the client)."""
    lasting = _compared(_of_lasting(last), _of_lasting(now), only_common=True)
    return [*lasting, *_compared(_of_any(last), _of_any(now), only_common=False)]


def _compared(last: Mapping[str, _Topic], now: Mapping[str, _Topic], *, only_common: bool) -> Iterator[Point]:
    for topic, before in last.items():
        after = now[topic]
        if before is not None and after is not None:
            names = [name for name in before if name in after] if only_common else [*before, *after]
            differing = [name for name in dict.fromkeys(names) if before.get(name) != after.get(name)]
            yield from _points(topic, differing[:SHOWN], before, after)
            if len(differing) > SHOWN:
                yield Point(f"{topic}: {len(differing) - SHOWN} more", "what they were", "what the facts say")


def _points(topic: str, names: list[str], before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Point]:
    for name in names:
        yield Point(f"{topic} {name}".rstrip(), before.get(name, NOTHING), after.get(name, NOTHING))


def _of_lasting(facts: Facts) -> dict[str, _Topic]:
    """What is compared of that which is there on both nights; the shape says what came and went."""
    return {
        "start of partition": {
            device.partition_uuid: f"byte {device.start_bytes}"
            for device in facts.block_devices
            if device.partition_uuid and device.start_bytes is not None
        },
        "UUID of the file system on": {row.mountpoint: row.uuid for row in facts.file_systems if row.uuid},
        "layout of logical volume": _layouts(facts.volume_groups or ()),
    }


def _of_any(facts: Facts) -> dict[str, _Topic]:
    """What may come and go, by what lasts of it: its name where the client gave it one, else its UUID."""
    return {
        "md array": None if facts.md_arrays is None else dict(map(_array, facts.md_arrays)),
        "LUKS device": {row.uuid: _size(row.size_bytes) for row in facts.luks_devices},
        "volume group": None if facts.volume_groups is None else dict(map(_group, facts.volume_groups)),
        "boot loader": None if facts.boot_loader == "unknown" else {"": facts.boot_loader},
        "fstab": None if facts.fstab is None else _joined(map(_mount, facts.fstab)),
        "crypttab": None if facts.crypttab is None else dict(map(_crypt, facts.crypttab)),
        "interface": None if facts.interfaces is None else dict(map(_interface, facts.interfaces)),
        "route to": None if facts.routes is None else _joined(_way(row) for row in facts.routes if not row.dynamic),
        "resolvers": None if facts.resolvers is None else {"": _resolvers(facts.resolvers)},
    }


def _joined(rows: Iterator[tuple[str, str]]) -> dict[str, str]:
    """Words by name, for what may have several rows under one."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, words in rows:
        found[name].append(words)
    return {name: ", ".join(sorted(words)) for name, words in found.items()}


def _layouts(groups: tuple[VolumeGroup, ...]) -> dict[str, str]:
    """Of what kind each logical volume's segments are, not how many: extending one is a matter of its size."""
    kinds = chain.from_iterable(
        ((f"{group.name}/{row.lv}", f"{row.type} over {row.stripes}") for row in group.segments) for group in groups
    )
    found: dict[str, set[str]] = defaultdict(set)
    for name, kind in kinds:
        found[name].add(kind)
    return {name: ", ".join(sorted(kinds)) for name, kinds in found.items()}


def _array(row: MdArray) -> tuple[str, str]:
    there = f"{len(row.members)} of {row.devices} devices, {len(row.spares)} spares"
    return row.uuid or row.device, f"{row.name}, {row.level or 'not started'}, {there}"


def _group(row: VolumeGroup) -> tuple[str, str]:
    count = f"{len(row.physical_volumes)} physical volumes"
    return row.name or "(none)", f"{row.uuid}, {count}, extents of {human_bytes(row.extent_bytes)}"


def _mount(row: FstabEntry) -> tuple[str, str]:
    name = row.mountpoint if row.mountpoint.startswith("/") else row.source
    return name, f"{row.source} {row.fstype} {row.options}"


def _crypt(row: CrypttabEntry) -> tuple[str, str]:
    return row.name, f"{row.source} {row.key_file} {row.options}".rstrip()


def _interface(row: Interface) -> tuple[str, str]:
    """A MAC address counts for physical ones only: others have one of chance, or that of a physical one."""
    kind = f"{row.kind} {row.bond_mode or ''}".strip() or f"MAC {row.mac or 'none'}"
    if row.kind == "vlan":
        kind = f"VLAN {row.vlan_id} on {row.link}"
    addresses = sorted(address.address for address in row.addresses if not address.dynamic)
    master = [f"part of {row.master}"] if row.master else []
    return row.name, ", ".join([kind, f"MTU {row.mtu}", *master, *addresses])


def _way(row: Route) -> tuple[str, str]:
    return row.destination, f"{row.gateway} on {row.device}"


def _resolvers(row: Resolvers) -> str:
    search = f", search {' '.join(row.search)}" if row.search else ""
    return f"{', '.join(row.nameservers) or 'none'}{search}"


def _size(size_bytes: int) -> str:
    return f"{human_bytes(size_bytes)} ({size_bytes} bytes)"
