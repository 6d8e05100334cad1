"""Which engine keeps a client's restore points, by the inventory."""

from tasks.drivers import near_store, permanent
from tasks.drivers.engines import Engine, Ground
from tasks.drivers.engines.command import CommandEngine
from tasks.drivers.engines.restic import ResticEngine
from tasks.drivers.engines.rsnapshot import RsnapshotEngine
from tasks.drivers.permanent import PermanentPlace
from tasks.drivers.store import Store
from tasks.errors import UnknownName
from tasks.model.inventory import Inventory
from tasks.model.inventory_engines import RSNAPSHOT


def engine_of(
    declared: Inventory, client: str, store: Store | None = None, place: PermanentPlace | None = None
) -> Engine:
    """The engine of a client, between these stores, or those of the inventory; UnknownName for no client."""
    if client not in declared.systems:
        raise UnknownName("client", client, list(declared.systems))
    ground = Ground(
        client,
        declared.policy_of(declared.systems[client]),
        store or near_store.of(declared),
        place or permanent.place_of(declared.permanent),
        declared.store.reserve_bytes,
    )
    if ground.policy.engine == RSNAPSHOT:
        return RsnapshotEngine(ground)
    section = declared.engines[ground.policy.engine]
    if section.restic is not None:
        return ResticEngine(ground, section.restic)
    assert section.command is not None  # noqa: S101 - one of the two, as the inventory has proven
    return CommandEngine(ground, section.command, ground.policy.engine)
