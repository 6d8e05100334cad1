"""From names to places: the inventory and the blocks, as what drivers need."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from blocks import DeviceLogin, KvmHost, PermanentStore, SshIdentity
from blocks import Store as StoreBlock
from tasks.drivers import inventory_file, libvirt_host, lock, near_store, ssh
from tasks.drivers.engines import Engine, chosen
from tasks.drivers.journal import Journal, journal_path
from tasks.drivers.libvirt_host import Host
from tasks.drivers.permanent import PermanentPlace
from tasks.drivers.ssh import Shell
from tasks.drivers.store import Store
from tasks.errors import ConfigError, NothingToRecover, UnknownName
from tasks.model.device import DeviceTarget
from tasks.model.inventory import Inventory, Policy
from tasks.model.inventory_devices import Device
from tasks.model.inventory_systems import Client, System
from tasks.model.manifest import ImageManifest
from tasks.model.night_choice import LATEST
from tasks.model.rsync_daemon import DaemonTarget
from tasks.model.ssh_target import SshTarget

APPLY = "run: gbs apply"
BlockType = TypeVar("BlockType", DeviceLogin, StoreBlock, PermanentStore, SshIdentity, KvmHost)


def inventory() -> Inventory:
    """The inventory in force."""
    return inventory_file.load()


def system_of(name: str) -> tuple[System, Policy]:
    """A client or KVM host of the inventory and its policy; UnknownName when it is not declared."""
    declared = inventory()
    if name not in declared.systems:
        raise UnknownName("client", name, list(declared.systems))
    return declared.systems[name], declared.policy_of(declared.systems[name])


def client_of_vm(vm: str) -> tuple[str, Client]:
    """The client that a VM is; UnknownName when no client says that it is this VM."""
    declared = inventory()
    if vm not in declared.vms:
        raise UnknownName("VM", vm, list(declared.vms))
    return declared.vms[vm], declared.clients[declared.vms[vm]]


def client(name: str) -> Client:
    """A client of the inventory; UnknownName when it is none."""
    declared = inventory()
    if name not in declared.clients:
        raise UnknownName("client", name, list(declared.clients))
    return declared.clients[name]


def store() -> Store:
    """The store that its block names; StoreNotMounted when it is not proven to be that one."""
    return near_store.proven(_load(StoreBlock, StoreBlock.DOCUMENT).path)


def require_store() -> None:
    """StoreNotMounted, before anything is begun, when the store is not proven to be the one that its block names."""
    store()


def reserve_bytes() -> int:
    """The free space that no run may use in the store."""
    return _load(StoreBlock, StoreBlock.DOCUMENT).reserve_bytes


def fake_super() -> bool:
    """Whether the stores cannot have owners, devices and xattrs themselves."""
    return _load(StoreBlock, StoreBlock.DOCUMENT).fake_super


def permanent() -> PermanentPlace:
    """The permanent store that its block names."""
    block = _load(PermanentStore, PermanentStore.DOCUMENT)
    return PermanentPlace(block.path, block.store_id, block.kind, block.export, block.mount_options)


def engine_of(client: str) -> Engine:
    """What keeps the client's restore points."""
    return chosen.engine_of(inventory(), client, store(), permanent())


def target_of(name: str) -> SshTarget:
    """How a client or KVM host is reached over ssh."""
    system, _ = system_of(name)
    return _target(name, system, system.identity)


def files_target_of(name: str) -> SshTarget:
    """How its files are pulled over ssh."""
    system, _ = system_of(name)
    return _target(name, system, system.files_identity or system.identity)


def recovery_target_of(name: str) -> SshTarget:
    """How what is recovered is written to it over ssh."""
    system, _ = system_of(name)
    return _target(name, system, system.recovery_identity or system.identity)


def daemon_of(name: str) -> DaemonTarget | None:
    """How its rsync daemon is reached; None for a client whose files come by other means."""
    system, _ = system_of(name)
    if (daemon := system.daemon) is None:
        return None
    return DaemonTarget(name, system.address, daemon.port, daemon.module, daemon.user, daemon.password_file)


def _target(name: str, system: System, identity: str) -> SshTarget:
    return _load(SshIdentity, SshIdentity.document_name(identity)).target(name, system.address, system.port)


def device(name: str) -> tuple[DeviceTarget, Device]:
    """How a device is reached, and what the inventory says of it; UnknownName when it is not declared."""
    declared = inventory()
    if name not in declared.devices:
        raise UnknownName("device", name, list(declared.devices))
    found = declared.devices[name]
    login = _load(DeviceLogin, DeviceLogin.document_name(found.login))
    return login.target(name, found.address, found.port), found


def kvm_host(name: str) -> tuple[SshTarget, KvmHost]:
    """How a KVM host is reached over ssh, and its block."""
    declared = inventory()
    if name not in declared.kvm_hosts:
        raise UnknownName("KVM host", name, list(declared.kvm_hosts))
    block = _load(KvmHost, KvmHost.document_name(name))
    identity = _load(SshIdentity, block.identity)
    return identity.target(name, block.address, block.port), block


@contextmanager
def hypervisor(name: str) -> Iterator[tuple[Host, Shell]]:
    """A KVM host's libvirt and a shell on it, while the block lasts."""
    target, block = kvm_host(name)
    with libvirt_host.connect(target, block.libvirt_uri) as host, ssh.connect(target) as shell:
        yield host, shell


def journal(kvm_host_name: str, uuid: str) -> Journal:
    """The journal of the snapshot windows of a VM."""
    return Journal(journal_path(store().journal, kvm_host_name, uuid))


def policy_of_vm(vm: str) -> Policy:
    """The policy of the client that a VM is; the built-in one for a VM that no client names."""
    return inventory().policy_of_vm(vm)


def connections_kept() -> AbstractContextManager[None]:
    """Within the block, ssh connections stay open from one task to the next."""
    return ssh.kept_open()


def locked(kind: str, name: str) -> AbstractContextManager[None]:
    """Hold the lock of a client, VM or target while the block lasts; Locked when another run has it."""
    return lock.hold(store().lock(kind, name), f"{kind} {name}")


def pins_turn(client: str) -> AbstractContextManager[None]:
    """Nobody else changes the client's pins, or gives up restore points by them, while the block lasts; or Locked."""
    return lock.turn(store().lock("pins", client), f"the pins of client {client}")


def image_pins_turn(vm: str) -> AbstractContextManager[None]:
    """The same of the pins of a VM's images."""
    return lock.turn(store().lock("image-pins", vm), f"the pins of images of {vm}")


@contextmanager
def image_turn(kvm_host_name: str, wait_s: float) -> Iterator[None]:
    """Wait for a turn to take an image, of as many as the KVM host and the store may have at once."""
    declared, ours = inventory(), store()
    limits = (
        (f"images of KVM host {kvm_host_name}", declared.kvm_hosts[kvm_host_name].max_images, kvm_host_name),
        ("images into the store", declared.store.max_images, ""),
    )
    with ExitStack() as stack:
        for what, count, name in limits:
            slots = [ours.lock("images", f"{name}-{number}") for number in range(count)]
            stack.enter_context(lock.one_of(slots, what, wait_s=wait_s))
        yield


def images_named(name: str, wanted: str | None) -> list[tuple[Path, ImageManifest]]:
    """The image that a word names (`latest`, or an id) of a VM, or of the VM that a client is; all with None.

    NothingToRecover with what there is.
    """
    declared = inventory().clients.get(name)
    vm = declared.vm if isinstance(declared, Client) and declared.vm else name
    found = store().images_of(vm)
    fitting = found[:1] if wanted == LATEST else [row for row in found if wanted in (None, row[1].id)]
    if not fitting:
        listed = ", ".join(image.id for _, image in found) or "none"
        raise NothingToRecover(f"VM {vm}", f"no image is called {wanted!r}; there are: {listed}" if wanted else listed)
    return fitting


def forget_blocks() -> None:
    """Read the blocks anew from now on: they were changed."""
    _blocks.clear()


_blocks: dict[tuple[str | None, type[Block], str], Block] = {}
"""What this process has read: a load costs 0.1 to 0.3 s, a client's night asks some 25 times, and a run that began with
one place should end with it. A run is a process, so every run sees the blocks as they are when it starts."""


def _load(kind: type[BlockType], document: str) -> BlockType:
    key = (PREFECT_API_URL.value(), kind, document)
    if key not in _blocks:
        try:
            _blocks[key] = kind.load(document)  # type: ignore[assignment]
        except (ValueError, ObjectNotFound) as exc:
            raise ConfigError(f"no block {document!r} of type {kind._block_type_name}", "Prefect", APPLY) from exc
    return _blocks[key]  # type: ignore[return-value]
