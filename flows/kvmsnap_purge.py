"""Remove the external snapshots that kvmsnap-create made: commit, pivot, unlink."""

from prefect import flow

from flows.run_name import named
from flows.vm_name import VmName
from tasks import places, windows
from tasks.errors import UnknownName
from tasks.windows import DiskOutcome


@flow(name="kvmsnap-purge", flow_run_name=named("vm", "purge snapshots of {}", "all VMs"))
def kvmsnap_purge(vm: VmName | None = None) -> list[DiskOutcome]:
    """Bring a VM, or every VM that has outstanding snapshots of ours, back to its base images.

    Args:
        vm: The VM, as libvirt names it. None means all.
    """
    found = [(host, plan) for host, plan in windows.open_windows() if vm in (None, plan.vm, plan.uuid)]
    if vm is not None and not found:
        raise UnknownName("VM with snapshots of ours", vm, [plan.vm for _, plan in windows.open_windows()])
    outcomes = []
    for host, plan in found:
        with places.locked("vm", plan.uuid):
            outcomes += windows.purge(host, plan.uuid)
    return outcomes
