"""The night: every client through stages 0, 1 and 2, side by side, then devices, images that are due, replicas."""

import logging

from prefect import State, flow

from flows.devices import begin_devices
from flows.ending import conclude
from flows.kvmimg_get import with_images_due
from flows.overnight import pull_client
from flows.permanent import keep_client, tidied
from flows.prepare import prepare_client
from flows.replicate import begin_replicas
from flows.run_name import named
from flows.side_by_side import begin_each, chosen, results_of, task_runner
from flows.stage import skipped
from flows.vm_name import ClientName
from tasks import places, space
from tasks.model.outcome import Outcome, StageResult

log = logging.getLogger(__name__)
STAGES = (("prepare", prepare_client), ("overnight", pull_client), ("permanent", keep_client))


def night_of(client: str) -> list[StageResult]:
    """One client through stages 0, 1 and 2; a stage that failed stops the client's later ones, and nobody else's."""
    results: list[StageResult] = []
    for name, run_stage in STAGES:
        if results and results[-1].outcome in (Outcome.FAILED, Outcome.SKIPPED):
            results.append(skipped(client, name, f"{results[-1].stage} did not end well"))
        else:
            results += run_stage(client)
    return results


@flow(name="nightly", flow_run_name=named("clients", "nightly of {}", "all clients"), task_runner=task_runner)
def nightly(clients: list[ClientName] | None = None) -> State[list[StageResult]]:
    """All stages for the named clients, or for every client and KVM host of the inventory.

    Devices and images take their turns behind the clients, but wait for none of them that is slow: an image waits for
    its own client and the KVM hosts.

    Args:
        clients: The clients and KVM hosts, as the inventory names them. None means all of them.
    """
    places.require_store()
    names = chosen(clients)
    nights = begin_each(night_of, names)
    # Clients that are asked for by name are a part of the night; devices belong to the whole one.
    devices = {} if clients else begin_devices()
    results = with_images_due(nights) + results_of(devices)
    replicas = begin_replicas(names if clients else None)
    results = tidied(results) + results_of(replicas)
    for problem in space.note_levels(places.store(), places.permanent()):
        log.warning("%s", problem)
    return conclude("nightly", results)
