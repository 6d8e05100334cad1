"""The inventory as a file, and the blocks that are made from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefect.blocks.core import Block

from blocks import DeviceLogin, KvmHost, PermanentStore, SshIdentity, Store
from tasks import places
from tasks.drivers import inventory_file
from tasks.model.inventory import Inventory


@dataclass(frozen=True)
class BlockChange:
    """What applying did, or would do, to one block."""

    document: str
    kind: str
    action: Literal["created", "changed", "unchanged"]
    fields: tuple[str, ...] = ()


def load(path: Path | None = None) -> Inventory:
    """The validated inventory of `path`, or the one in force."""
    return inventory_file.load(path)


def where(path: Path | None = None) -> Path:
    """The file that `load` reads."""
    return path or inventory_file.inventory_path()


def documents(inventory: Inventory) -> dict[str, Block]:
    """The blocks that an inventory declares, by document name."""
    found: dict[str, Block] = {
        Store.DOCUMENT: Store(
            path=Path(inventory.store.path),
            reserve_bytes=inventory.store.reserve_bytes,
            fake_super=inventory.store.fake_super,
        ),
        PermanentStore.DOCUMENT: PermanentStore(
            path=Path(inventory.permanent.path),
            store_id=inventory.permanent.store_id,
            kind=inventory.permanent.kind,
            export=inventory.permanent.export,
            mount_options=inventory.permanent.mount_options,
        ),
    }
    for name, identity in inventory.identities.items():
        found[SshIdentity.document_name(name)] = SshIdentity(**identity.model_dump())
    for name, host in inventory.kvm_hosts.items():
        found[KvmHost.document_name(name)] = KvmHost(
            name=name,
            address=host.address,
            port=host.port,
            identity=SshIdentity.document_name(host.identity),
            libvirt_uri=host.libvirt_uri,
            image_folder=host.image_folder,
        )
    for name, login in inventory.logins.items():
        found[DeviceLogin.document_name(name)] = DeviceLogin(**login.model_dump())
    return found


def apply(inventory: Inventory, *, dry_run: bool = False) -> list[BlockChange]:
    """Make Prefect's blocks say what the inventory says; what did not differ is left as it is."""
    changes = []
    for document, wanted in documents(inventory).items():
        present = _present(type(wanted), document)
        fields = tuple(name for name, value in _values(wanted).items() if present is None or present[name] != value)
        action: Literal["created", "changed", "unchanged"] = "created" if present is None else "changed"
        if not fields and present is not None:
            action = "unchanged"
        elif not dry_run:
            wanted.save(document, overwrite=True)
            places.forget_blocks()
        changes.append(BlockChange(document, type(wanted).get_block_type_slug(), action, fields if present else ()))
    return changes


def _values(block: Block) -> dict[str, Any]:
    return {name: getattr(block, name) for name in type(block).model_fields}


def _present(kind: type[Block], document: str) -> dict[str, Any] | None:
    try:
        block: Any = kind.load(document)
        return _values(block)
    except ValueError:
        return None
