"""What of a domain definition is known to be safe on another host: the whitelist, as data.

Attributes and elements that are not named here do not survive a recovery. https://libvirt.org/formatdomain.html
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spec:
    """What may stay of an element: attributes, child elements, its text; attributes in `silently` go untold.

    An element with `gone` is replaced or made anew by the new host: it goes untold, but not what else it holds.
    """

    attributes: frozenset[str] = frozenset()
    children: Mapping[str, "Spec"] = field(default_factory=dict)
    text: bool = False
    silently: frozenset[str] = frozenset()
    gone: bool = False


def _spec(attributes: str = "", *, text: bool = False, silently: str = "", **children: Spec) -> Spec:
    named = {tag.replace("__", "-"): spec for tag, spec in children.items()}
    return Spec(frozenset(attributes.split()), named, text, frozenset(silently.split()))


def _gone(silently: str) -> Spec:
    return Spec(silently=frozenset(silently.split()), gone=True)


_TEXT = _spec(text=True)
_FLAG = _spec()
_STATE = _spec("state")
_SIZE = _spec("unit", text=True)
# PCI places name a guest's network cards (ens3), so they stay.
_ADDRESS = _spec("type domain bus slot function multifunction controller target unit port cssid ssid devno")
_BOOT = _spec("order")
_HYPERV = (
    "relaxed",
    "vapic",
    "vpindex",
    "runtime",
    "synic",
    "stimer",
    "reset",
    "frequencies",
    "tlbflush",
    "ipi",
    "evmcs",
)

SYSTEM: Mapping[str, Spec] = {
    "title": _TEXT,
    "description": _TEXT,
    "memory": _SIZE,
    "currentMemory": _SIZE,
    "vcpu": _spec("current placement", text=True, silently="cpuset"),
    "os": _spec(
        silently="firmware",
        type=_spec("arch machine", text=True),
        boot=_spec("dev"),
        bootmenu=_spec("enable timeout"),
        bios=_spec("useserial rebootTimeout"),
        # The loader and its variables are the host's; the firmware is asked for by name.
        loader=_gone("readonly type secure format stateless"),
        nvram=_gone("template format type"),
        firmware=_spec(feature=_spec("enabled name")),
    ),
    "features": _spec(
        acpi=_FLAG,
        apic=_spec("eoi"),
        pae=_FLAG,
        hap=_STATE,
        pmu=_STATE,
        vmport=_STATE,
        smm=_STATE,
        ioapic=_spec("driver"),
        gic=_spec("version"),
        pvspinlock=_STATE,
        kvm=_spec(hidden=_STATE),
        hyperv=Spec(
            frozenset({"mode"}),
            {
                "spinlocks": _spec("state retries"),
                "vendor_id": _spec("state value"),
                **dict.fromkeys(_HYPERV, _STATE),
            },
        ),
    ),
    "cpu": _spec(
        "mode match check migratable",
        model=_spec("fallback vendor_id", text=True),
        vendor=_TEXT,
        topology=_spec("sockets dies clusters cores threads"),
        cache=_spec("level mode"),
        feature=_spec("policy name"),
        numa=_spec(cell=_spec("id cpus memory unit")),
    ),
    "clock": _spec(
        "offset timezone adjustment basis",
        timer=_spec("name tickpolicy present track frequency mode"),
    ),
    "on_poweroff": _TEXT,
    "on_reboot": _TEXT,
    "on_crash": _TEXT,
    "pm": _spec(suspend__to__mem=_spec("enabled"), suspend__to__disk=_spec("enabled")),
}

DEVICES: Mapping[str, Spec] = {
    "disk": _spec(
        silently="type device snapshot model",
        driver=_spec("type cache discard detect_zeroes", silently="name io iothread queues"),
        source=_gone("file dev name pool volume index startupPolicy protocol"),
        target=_spec("dev bus", silently="tray"),
        serial=_TEXT,
        wwn=_TEXT,
        blockio=_spec("logical_block_size physical_block_size"),
        boot=_BOOT,
        address=_ADDRESS,
    ),
    "interface": _spec(
        "type",
        mac=_spec("address"),
        source=_gone("network bridge dev mode portgroup portid"),
        model=_spec("type"),
        target=_gone("dev"),
        link=_STATE,
        mtu=_spec("size"),
        boot=_BOOT,
        address=_ADDRESS,
        backend=_spec("type", silently="logFile"),
        ip=_spec("address family prefix"),
        portForward=_spec("proto address", range=_spec("start end to exclude")),
    ),
    "serial": _spec(
        silently="type",
        source=_gone("path mode host service append"),
        target=_spec("type port", model=_spec("name")),
        address=_ADDRESS,
    ),
    "console": _spec(
        silently="type tty",
        source=_gone("path mode host service append"),
        target=_spec("type port"),
        address=_ADDRESS,
    ),
    "controller": _spec(
        "type index model ports vectors",
        model=_spec("name"),
        target=_spec("chassis port chassisNr busNr hotplug"),
        master=_spec("startport"),
        address=_ADDRESS,
    ),
    "input": _spec("type bus model", address=_ADDRESS),
    "video": _spec(model=_spec("type heads primary vram vgamem ram"), address=_ADDRESS),
    "watchdog": _spec("model action", address=_ADDRESS),
    "panic": _spec("model", address=_ADDRESS),
    "memballoon": _spec("model autodeflate freePageReporting", address=_ADDRESS),
    "rng": _spec("model", backend=_spec("model", text=True), rate=_spec("bytes period"), address=_ADDRESS),
}
