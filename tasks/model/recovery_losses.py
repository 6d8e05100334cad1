"""What a recovery would not bring back or not do, said before it is done."""

from collections.abc import Iterator

from tasks.model.assessment import Finding
from tasks.model.domain_xml import Domain
from tasks.model.facts import Facts
from tasks.model.inventory_systems import Client
from tasks.model.recovery import Sources
from tasks.model.recovery_plan import Order, Plan


def missing(sources: Sources, order: Order, domain: Domain, client: Client, facts: Facts | None) -> Iterator[Finding]:
    """What would not come back, and what an operator may take for granted and should not."""
    dumped = {dump.called for dump in sources.night.dumps}
    for database in client.databases:
        if database.called not in dumped:
            reason = f"night {sources.night.id} has no dump of it: only its files come back"
            yield Finding(verdict="missing", subject=f"database {database.called}", reason=reason)
    for secret in sources.image.parts.secrets:
        reason = "libvirt's secret is in no image"
        yield Finding(
            verdict="missing", subject=secret, reason=reason, fix="define it on the host: virsh secret-define"
        )
    for warning in (*sources.image.warnings, *sources.night.warnings):
        yield Finding(verdict="missing", subject="backup", reason=warning)
    if domain.firmware == "efi" and "nvram" not in sources.image.parts.files:
        reason = "the image has none: boot entries and keys are lost, the firmware looks for a loader by itself"
        yield Finding(verdict="missing", subject="UEFI variables", reason=reason)
    if domain.tpm and sources.image.parts.tpm_state is None:
        yield Finding(verdict="missing", subject="TPM", reason="the image has no state of it: the VM comes without")
    if facts is not None and any(device.fstype == "crypto_LUKS" for device in facts.block_devices):
        reason = "its disks hold LUKS: the guest asks for the key at boot unless it can get it by itself"
        yield Finding(verdict="missing", subject="LUKS key", reason=reason)
    if order.apart:
        reason = f"its host name, addresses, ssh host keys and machine-id stay those of {sources.vm}"
        yield Finding(verdict="note", subject="guest", reason=reason)


def unreached(sources: Sources, plan: Plan, domain: Domain, client: Client) -> Iterator[Finding]:
    """What is not done with a VM that is not reached by its client's address."""
    if plan.reached:
        return
    by = "by its guest agent" if domain.guest_agent else "no longer than that it runs: it has no guest agent's channel"
    yield Finding(verdict="note", subject="wait", reason=f"not reached by its client's address: waited for {by}")
    if sources.night.dumps or client.probes:
        reason = (
            "not restored and not probed: the guest is not reached by its client's address; its dumps are in its files"
        )
        yield Finding(verdict="missing", subject="databases, probes", reason=reason)
