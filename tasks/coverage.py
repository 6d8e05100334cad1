"""What nobody protects: VMs, file systems, databases and devices that no backup would bring back."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from tasks import places
from tasks.drivers.store import Store, read_model
from tasks.errors import GbsError
from tasks.model.inventory import Inventory
from tasks.model.inventory_devices import Device
from tasks.model.inventory_systems import System
from tasks.model.mounts import not_pulled
from tasks.model.names import human_age, human_bytes
from tasks.model.prepared import Prepared


@dataclass(frozen=True)
class Gap:
    """Something that no backup would bring back, and what closes the gap."""

    subject: str
    what: str
    fix: str


def gaps() -> Iterator[Gap]:
    """Every gap: of each KVM host's VMs, asked now; of each client, by what its last stage 0 found."""
    declared, store = places.inventory(), places.store()
    yield from _vms(declared, store)
    for name, system in declared.systems.items():
        yield from _system(store, name, system)
    for name, device in declared.devices.items():
        yield from _device(store, name, device)


def _vms(declared: Inventory, store: Store) -> Iterator[Gap]:
    found: set[str] = set()
    silent = 0
    for kvm_host in declared.kvm_hosts:
        try:
            with places.hypervisor(kvm_host) as (host, _):
                names = host.domain_names()
        except GbsError as exc:
            silent += 1
            yield Gap(f"KVM host {kvm_host}", f"its VMs cannot be listed: {exc}", "gbs check")
            continue
        found.update(names)
        for vm in names:
            if vm not in declared.vms:
                yield Gap(f"VM {vm} on {kvm_host}", "it is no client's: nothing of it is backed up", "declare a client")
    for vm, client in declared.vms.items():
        if vm not in found and not silent:
            yield Gap(f"client {client}", f"its VM {vm} is on no KVM host", "correct vm, or declare its KVM host")
        if not store.images_of(vm):
            yield Gap(f"VM {vm}", "there is no image of it yet", f"gbs-kvmimg-get {vm}")


def _device(store: Store, name: str, device: Device) -> Iterator[Gap]:
    kept = store.configurations_of(name)
    age_s = (datetime.now(UTC) - kept[0][1].last_seen).total_seconds() if kept else None
    if age_s is None:
        yield Gap(f"device {name}", "its configuration was never seen", f"gbs run devices --device {name}")
    elif age_s > device.max_age_days * 86400:
        yield Gap(f"device {name}", f"it was last seen {human_age(age_s)} ago", f"gbs run devices --device {name}")


def _system(store: Store, name: str, system: System) -> Iterator[Gap]:
    prepared = read_model(store.prepared(name), Prepared)
    if prepared is None:
        yield Gap(f"client {name}", "stage 0 has never run there", f"gbs run prepare --client {name}")
        return
    for row in not_pulled(prepared.facts, system.paths):
        used = human_bytes(row.used_bytes)
        yield Gap(f"client {name}", f"{row.mountpoint} ({row.fstype}, {used} used) is not pulled", "add it to paths")
    for line in prepared.undeclared:
        yield Gap(f"client {name}", line, "declare it in databases")
