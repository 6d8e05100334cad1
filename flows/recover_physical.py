"""Disaster recovery of a physical client: it comes back as a VM of a KVM host, from a template of its flavour."""

from prefect import flow

from flows.kvmimg_update import choose_physical
from flows.recover_vm import bring_back
from flows.run_name import of_physical
from flows.vm_name import ClientName, KvmHostName
from tasks import places
from tasks.errors import RecoveryRefused
from tasks.model.assessment import Assessment
from tasks.model.physical_definition import Machine
from tasks.model.recovery import Recovered
from tasks.model.recovery_plan import Order


@flow(name="recover-physical", flow_run_name=of_physical)
def recover_physical(
    client: ClientName,
    to: KvmHostName,
    network: str,
    night: str = "latest",
    template: str | None = None,
    memory_mib: int | None = None,
    processors: int | None = None,
    emulated: bool = False,
    isolated: bool = False,
    dry_run: bool = False,
    approval: bool = False,
) -> Recovered | Assessment:
    """Bring a physical client back as a VM: a template's disks become its own, then its files, databases, probes.

    Args:
        client: The client, which no VM is.
        to: The KVM host to bring it to.
        network: What all its network cards are connected to there: bridge:NAME or network:NAME.
        night: latest, overnight, daily.N, an id, or a date (YYYY-MM-DD).
        template: A flavour, or the image that a template was made of (VM/ID). None means one that serves.
        memory_mib: None means what the client had.
        processors: None means as many as the client had.
        emulated: The host has no KVM.
        isolated: Connect all its cards to a network that leads nowhere.
        dry_run: Only assess: say what would be used, how long it would take, what is missing, whether it fits.
        approval: Assess, then wait for somebody's word in the UI before anything is done.
    """
    if (vm := places.client(client).vm) is not None:
        raise RecoveryRefused(f"client {client}", f"it is VM {vm}", f"bring that back: gbs recover vm {vm}")
    memory_bytes = memory_mib << 20 if memory_mib else None
    machine = Machine(network, memory_bytes, processors, "qemu" if emulated else "kvm")
    sources = choose_physical(client, night, to, machine, template)
    return bring_back(sources, Order(kvm_host=to, isolated=isolated), dry_run=dry_run, approval=approval)
