"""Stage 1 for network and SAN devices: their configurations, with history, and what was changed since the last one."""

import logging
from collections.abc import Sequence

from prefect import State, flow

from flows.ending import conclude
from flows.run_name import named
from flows.side_by_side import Begun, begin_each, results_of, task_runner
from flows.stage import stage
from flows.vm_name import DeviceName
from tasks import devices as device_tasks
from tasks import places
from tasks.errors import UnknownName
from tasks.model.outcome import Outcome, StageResult

log = logging.getLogger(__name__)
UNSAVED = "it would not start with the configuration that it runs with: save it on the device"


def keep_device(device: str) -> list[StageResult]:
    """Fetch the configuration of one device and keep it when it was changed; unchanged is as good."""
    with stage(device, "device") as running, places.locked("device", device):
        kept = device_tasks.keep(device, device_tasks.fetch(device))
        if kept.changes != []:
            running.produced = kept.manifest.id
            running.bytes_moved = sum(file.size_bytes for file in kept.manifest.files)
        if kept.changes:
            log.info("%s was changed: %d lines of difference", device, len(kept.changes))
            device_tasks.show(device, kept.changes)
        if kept.manifest.unsaved:
            running.say(Outcome.WARNING, UNSAVED)
    return [running.result()]


def begin_devices(names: Sequence[str] | None = None) -> Begun:
    """Begin the named devices, or all of the inventory, side by side; UnknownName before anything is started."""
    known = list(places.inventory().devices)
    for name in names or ():
        if name not in known:
            raise UnknownName("device", name, known)
    return begin_each(keep_device, list(names) if names else known, "device {client}")


@flow(name="devices", flow_run_name=named("devices", "configuration of {}", "all devices"), task_runner=task_runner)
def devices(devices: list[DeviceName] | None = None) -> State[list[StageResult]]:
    """Fetch the configurations of the named network and SAN devices, or of all; what was changed is an artifact.

    Args:
        devices: The devices, as the inventory names them. None means all of them.
    """
    return conclude("devices", results_of(begin_devices(devices)))
