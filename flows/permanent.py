"""Stage 2, permanent backup: overnight copies become restore points in the permanent store."""

import logging

from prefect import State, flow

from flows.ending import conclude
from flows.replicate import begin_replicas
from flows.run_name import named
from flows.side_by_side import ALL, begin_each, chosen, results_of, task_runner
from flows.stage import Stage, stage
from flows.vm_name import ClientName
from tasks import places, points
from tasks.model.outcome import Outcome, StageResult

log = logging.getLogger(__name__)


def keep_client(client: str) -> list[StageResult]:
    """Sync one client's overnight copy and rotate its restore points, unless it is not new or is held."""
    with stage(client, "permanent") as running, places.locked("client", client):
        synced = points.sync(client)
        for line in (*synced.warnings, *points.brake(client, synced)):
            running.say(Outcome.WARNING, line)
        rotations = points.rotate(client)
        if rotations:
            running.produced = synced.night
        else:
            running.say(Outcome.SKIPPED, f"night {synced.night} is in the permanent store already")
    return [running.result()]


def tidied(results: list[StageResult]) -> list[StageResult]:
    """The results of stage 2, after what it gave up is removed, for which no client has to wait."""
    running = Stage(ALL, "permanent")
    clients = [row.client for row in results if row.stage == "permanent"]
    try:
        problems = points.tidy(clients) if clients else []
    except Exception as exc:
        log.exception("removing what was given up: unexpected")
        problems = [f"unexpected {type(exc).__name__}: {exc}"]
    for problem in problems:
        running.say(Outcome.WARNING, f"what was given up is not removed: {problem}")
    return [*results, running.result()] if problems else results


@flow(name="permanent", flow_run_name=named("clients", "permanent of {}", "all clients"), task_runner=task_runner)
def permanent(clients: list[ClientName] | None = None) -> State[list[StageResult]]:
    """Stage 2 for the named clients, or all: restore points in what their policy names; and replicas.

    Args:
        clients: The clients and KVM hosts, as the inventory names them. None means all of them.
    """
    places.require_store()
    names = chosen(clients)
    begun, replicas = begin_each(keep_client, names), begin_replicas(names if clients else None)
    return conclude("permanent", tidied(results_of(begun)) + results_of(replicas))
