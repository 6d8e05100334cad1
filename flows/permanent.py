"""Stage 2, permanent backup: overnight copies become restore points in the permanent store."""

import logging

from prefect import State, flow

from flows.ending import conclude
from flows.run_name import named
from flows.side_by_side import chosen, for_each_client, task_runner
from flows.stage import Stage, stage
from flows.vm_name import ClientName
from tasks import places, points
from tasks.model.outcome import Outcome, StageResult

log = logging.getLogger(__name__)


def keep_client(client: str) -> list[StageResult]:
    """Sync one client's overnight copy and rotate its restore points; nothing rotates unless it is new."""
    with stage(client, "permanent") as running, places.locked("client", client):
        synced = points.sync(client)
        for warning in synced.warnings:
            running.say(Outcome.WARNING, warning)
        rotations = points.rotate(client)
        if rotations:
            running.produced = synced.night
        else:
            running.say(Outcome.SKIPPED, f"night {synced.night} is in the permanent store already")
    return [running.result()]


def tidied(results: list[StageResult]) -> list[StageResult]:
    """The results of stage 2, after what it gave up is removed, for which no client has to wait."""
    running = Stage("all clients", "permanent")
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
    """Stage 2 for the named clients, or all: daily, weekly and monthly restore points in what their policy names.

    Args:
        clients: The clients and KVM hosts, as the inventory names them. None means all of them.
    """
    return conclude("permanent", tidied(for_each_client(keep_client, chosen(clients))))
