"""The disks of a VM that is shut off, or that is shut down for the copy and started again."""

import time
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime

from tasks.drivers import disk_copy, disk_sources
from tasks.drivers.image_order import Order
from tasks.drivers.shut_off import shut_off
from tasks.drivers.snaplive_evidence import look
from tasks.errors import HypervisorError
from tasks.model.domain_xml import parse_domain
from tasks.model.image_taken import Taken
from tasks.model.window import select_disks
from tasks.model.window_decision import Power

_NOT_SHUT_DOWN = "the guest had not shut down: its memory was saved, or its power cut"


def take(order: Order) -> Taken:
    """Copy the disks of a VM while it is off; one that runs is shut down for it and started again.

    HypervisorError when it does not shut down in time, or when somebody else starts it
    meanwhile; errors as `disk_copy.copy`.
    """
    host, shell, wishes = order.host, order.shell, order.wishes
    domain, started, tools = host.domain(order.uuid), datetime.now(UTC), host.versions()
    before = look(host, order.uuid, others=False)
    off: AbstractContextManager[str] = nullcontext("" if before.managed_save else "the guest was shut off")
    if before.power is Power.ON:
        off = shut_off(
            shell,
            order.journal,
            domain,
            order.image_id,
            deadline_s=wishes.shutdown_deadline_s,
            work_deadline_s=wishes.transfer_deadline_s,
            force=wishes.force_shutdown,
        )
    with off as how:
        selection = select_disks(parse_domain(domain.xml()))
        # Not shared: QEMU's locks on the images prove that nobody writes to them.
        disks = disk_sources.find(shell, domain, selection.taken, shared=False)
        instant, began = datetime.now(UTC), time.monotonic()
        moved = disk_copy.copy(shell, order.target, domain.name, disks, order.folder, wishes)
        copy_s = time.monotonic() - began
        if look(host, order.uuid, others=False).power is not Power.OFF:
            raise HypervisorError(domain.name, "an offline copy", "the VM was started while its disks were copied")
    return Taken(
        id=order.image_id,
        started=started,
        instant=instant,
        method="offline",
        method_reason=order.reason,
        consistency="file-system" if how else "crash",
        consistency_reason=how or _NOT_SHUT_DOWN,
        window_s=0,
        copy_s=copy_s,
        frozen_s=0,
        disks=tuple(map(disk_copy.taken, disks)),
        tools=tools,
        warnings=selection.warnings,
        bytes_moved=moved,
    )
