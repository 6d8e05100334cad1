"""Where a VM that is brought back goes, and as whom: its identity, its files and its networks on the KVM host."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal
from uuid import UUID, uuid5

from pydantic import BaseModel, ConfigDict

from tasks.errors import ConfigError
from tasks.model.domain_xml import Domain, parse_domain
from tasks.model.manifest import DiskRecord
from tasks.model.names import slug
from tasks.model.recovery import Original, place_of, working_disks

ISOLATED = "gbs-isolated"
"""The libvirt network of VMs that are brought back isolated: it leads nowhere, not even to its host."""
NVRAM_FOLDER = "/var/lib/libvirt/qemu/nvram"
TPM_FOLDER = "/var/lib/libvirt/swtpm"
LINK_DOWN = "none"
_SECOND_VMS = UUID("2c7d3a50-7f0c-5f52-9d4b-0f6a52b0c6ad")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Order(_Frozen):
    """What an operator asks for."""

    kvm_host: str
    as_name: str | None = None
    networks: dict[str, str] = {}
    """network:NAME, bridge:NAME, user or none (link down), by the old network or bridge."""
    isolated: bool = False

    @property
    def apart(self) -> bool:
        """Whether the VM is another than its client: the first one may be at its address."""
        return self.isolated or self.as_name is not None


class Identity(_Frozen):
    """Who the VM is on its new host; `macs` are new addresses by the old ones, of a second VM only."""

    name: str
    uuid: str
    macs: dict[str, str] = {}


class Place(_Frozen):
    """A file of the image and where it goes on the KVM host; `volume` is POOL/VOLUME of a pool there."""

    role: str
    """A disk target, or nvram, kernel, initrd, dtb, tpm."""
    file: str
    path: str
    format: Literal["qcow2", "raw", "tar"] = "raw"
    volume: str = ""


class Pool(_Frozen):
    """A storage pool of the KVM host: `folder` is None where its volumes are no files."""

    name: str
    active: bool
    folder: str | None


class Plan(_Frozen):
    """All that a recovery puts on a KVM host."""

    kvm_host: str
    identity: Identity
    disks: tuple[Place, ...]
    parts: tuple[Place, ...] = ()
    networks: dict[str, str] | None = None
    """As `rewrite_for_recovery` takes it."""
    isolated: bool = False
    reached: bool = True
    """Whether the VM is the one at its client's address: not one apart, nor one without a network."""

    @property
    def places(self) -> tuple[Place, ...]:
        """Everything that gets a file on the host."""
        return (*self.disks, *self.parts)


def identity_of(domain: Domain, as_name: str | None) -> Identity:
    """The VM itself; or, with a name, a second one beside it: its UUID and MACs follow from the first's and the name.

    So a run that was killed finds again what it made. The MACs are locally administered (02:…, five bytes of sha256).
    ConfigError for a name that libvirt or a file name cannot have.
    """
    _require_uuid(domain.uuid)
    if "/" in domain.name:
        raise ConfigError("not a name of a VM", repr(domain.name), "take the definition again from libvirt")
    if as_name is None:
        return Identity(name=domain.name, uuid=domain.uuid)
    if as_name == domain.name or not as_name.strip() or "/" in as_name or not as_name.isprintable():
        raise ConfigError("not a name for a second VM", repr(as_name), f"choose one that is not {domain.name!r}")
    uuid = str(uuid5(_SECOND_VMS, f"{domain.uuid} {as_name}"))
    return Identity(name=as_name, uuid=uuid, macs={mac: _mac_of(uuid, mac) for mac in domain.macs})


def _require_uuid(text: str) -> None:
    """A definition may say anything, and paths are made of its UUID."""
    try:
        sound = str(UUID(text)) == text
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError("not a UUID of a VM", repr(text), "take the definition again from libvirt")


def _mac_of(uuid: str, mac: str) -> str:
    digest = hashlib.sha256(f"{uuid} {mac}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (2, *digest[:5]))


def parse_networks(words: Sequence[str]) -> dict[str, str]:
    """`br0=default`, `lan=bridge:br1`, `br0=none` as a mapping; a bare name is a network of libvirt's. ConfigError."""
    found = {}
    for word in words:
        old, _, new = (part.strip() for part in word.partition("="))
        kind = new.partition(":")[0]
        if not old or not new or (":" in new and (kind not in ("network", "bridge") or new.endswith(":"))):
            fix = "write OLD=NEW, where NEW is a network, bridge:NAME, user, or none for a link that is down"
            raise ConfigError("not a mapping of networks", repr(word), fix)
        found[old] = new if ":" in new or new in ("user", LINK_DOWN) else f"network:{new}"
    return found


def networks_of(domain: Domain, order: Order) -> dict[str, str] | None:
    """What each network of the VM becomes, complete; None when all stay. ConfigError for one that it does not have."""
    names = {card.source or card.kind: card for card in domain.interfaces}
    if order.isolated:
        return dict.fromkeys(names, f"network:{ISOLATED}")
    if unknown := sorted(set(order.networks) - set(names)):
        known = ", ".join(sorted(names)) or "none"
        raise ConfigError("the VM has no such network", ", ".join(unknown), f"its network cards are on: {known}")
    if not order.networks:
        return None
    kept = {name: f"{card.kind}:{name}" for name, card in names.items() if card.kind in ("network", "bridge")}
    kept |= {name: "user" for name, card in names.items() if card.kind == "user"}
    return {name: to for name, to in (kept | order.networks).items() if to != LINK_DOWN}


def _is_connected(domain: Domain, networks: Mapping[str, str] | None) -> bool:
    """Whether any network card of the VM that is brought back has its link up, see `rewrite_interface`."""
    if networks is not None:
        return bool(networks)
    known = ("network", "bridge")
    return any(card.kind == "user" or (card.source and card.kind in known) for card in domain.interfaces)


def plan_of(sources: Original, order: Order, image_folder: str, pools: Mapping[str, Pool]) -> Plan:
    """Where everything of the VM goes on the KVM host that `order` names."""
    domain = parse_domain(sources.xml)
    identity, networks = identity_of(domain, order.as_name), networks_of(domain, order)
    same_host = order.kvm_host == sources.kvm_host
    disks = tuple(
        _place(disk, identity, image_folder, pools, same_host=same_host, second=order.as_name is not None)
        for disk in working_disks(sources.image)
    )
    parts = sources.image.parts
    # Where libvirt looks, whatever a definition with firmware='efi' says (seen with 9.0).
    roles = {"nvram": f"{NVRAM_FOLDER}/{identity.name}_VARS.fd"}
    others = [Place(role=role, file=file, path=roles.get(role, f"{image_folder}/{slug(identity.name)}-{role}"))
              for role, file in parts.files.items()]  # fmt: skip
    if parts.tpm_state is not None:
        others.append(Place(role="tpm", file=parts.tpm_state, path=f"{TPM_FOLDER}/{identity.uuid}", format="tar"))
    disks = _told_apart(disks, identity)
    _require_one_place_each((*disks, *others))
    return Plan(
        kvm_host=order.kvm_host,
        identity=identity,
        disks=disks,
        parts=tuple(others),
        networks=networks,
        isolated=order.isolated,
        reached=not order.apart and _is_connected(domain, networks),
    )


def _told_apart(disks: tuple[Place, ...], identity: Identity) -> tuple[Place, ...]:
    """Disks from several folders or pools may have one name where they go: those get names of their own."""
    often = Counter(disk.path for disk in disks)
    return tuple(_with_own_name(disk, identity) if often[disk.path] > 1 else disk for disk in disks)


def _with_own_name(place: Place, identity: Identity) -> Place:
    name = f"{slug(identity.name)}-{place.role}.{place.format}"
    pool = place.volume.partition("/")[0]
    path = str(PurePosixPath(place.path).with_name(name))
    return place.model_copy(update={"path": path, "volume": f"{pool}/{name}" if pool else ""})


def _require_one_place_each(places: Sequence[Place]) -> None:
    often = Counter(place.path for place in places)
    for path in (path for path, count in often.items() if count > 1):
        roles = " and ".join(place.role for place in places if place.path == path)
        fix = "bring it to the host that had it, or back as a second VM with --as: its files have names of their own"
        raise ConfigError(f"{roles} of the VM would be one file", path, fix)


def _place(
    disk: DiskRecord, identity: Identity, image_folder: str, pools: Mapping[str, Pool], *, same_host: bool, second: bool
) -> Place:
    """A volume goes back into its pool; anything else is a file, as `place_of` says. A second VM's has its own name."""
    own_name = f"{slug(identity.name)}-{disk.target}.{disk.format}"
    pool_name, _, volume = disk.volume.partition("/")
    pool = pools.get(pool_name)
    if pool is not None and pool.folder is not None:
        name = own_name if second or PurePosixPath(volume).name != volume else volume
        path = str(PurePosixPath(pool.folder, name))
        return Place(role=disk.target, file=disk.file, path=path, format=disk.format, volume=f"{pool_name}/{name}")
    path = place_of(disk, identity.name, image_folder, same_host=same_host)
    if second:
        path = str(PurePosixPath(path).with_name(own_name))
    return Place(role=disk.target, file=disk.file, path=path, format=disk.format)
