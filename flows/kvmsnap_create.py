"""Make external snapshots of a VM for a copy by another tool; they stay until they are purged."""

from datetime import UTC, datetime

from prefect import flow

from flows.reconcile import require_settled
from flows.vm_name import VmName
from tasks import images, places, windows
from tasks.model.names import new_id
from tasks.windows import Window


@flow(name="kvmsnap-create", flow_run_name="snapshot of {vm}")
def kvmsnap_create(vm: VmName) -> Window:
    """Put the running VM on overlays: its disks then lie still and may be copied. Purge them soon, they only grow.

    Args:
        vm: The VM, as libvirt names it.
    """
    definition = images.find(vm)
    host, uuid = definition.kvm_host, definition.domain.uuid
    with places.locked("vm", uuid):
        require_settled(host, uuid)
        return windows.create(host, uuid, new_id(datetime.now(UTC)))
