"""Stage 1, overnight backup: every client's files, and the KVM images that are due."""

from datetime import UTC, datetime

from prefect import State, flow

from flows.ending import conclude
from flows.hooked import hooked
from flows.kvmimg_get import with_images_due
from flows.run_name import named
from flows.side_by_side import begin_each, chosen, task_runner
from flows.snapshotted import snapshotted
from flows.stage import stage
from flows.vm_name import ClientName
from tasks import files, places
from tasks.errors import DumpFailed
from tasks.model.manifest import DumpRecord
from tasks.model.outcome import Outcome, StageResult


def pull_client(client: str) -> list[StageResult]:
    """Pull one client's files and publish them as its overnight copy; the old copy stays when anything is wrong."""
    started = datetime.now(UTC)
    with stage(client, "overnight") as running, places.locked("client", client), hooked(running):
        prepared = files.read_prepared(client)
        for failure in prepared.failures:
            running.say(Outcome.PARTIAL, failure)
        for line in files.compare_layout(client):
            running.say(Outcome.WARNING, line)
        with snapshotted(running, prepared) as tree:
            moved = files.pull(client, tree)
        for line in (*moved.vanished, *files.rewritten(client, moved)):
            running.say(Outcome.WARNING, line)
        proven, doubts = _prove(client)
        for doubt in doubts:
            running.say(Outcome.PARTIAL, doubt)
        running.produced = files.publish(client, started, moved, proven, doubts, tree).id
        running.bytes_moved = moved.received_bytes
    return [running.result()]


def _prove(client: str) -> tuple[list[DumpRecord], list[str]]:
    proven: list[DumpRecord] = []
    doubts: list[str] = []
    for dump in files.dumps_to_prove(client):
        try:
            proven.append(files.prove(client, dump))
        except DumpFailed as exc:
            doubts.append(str(exc))
    return proven, doubts


@flow(name="overnight", flow_run_name=named("clients", "overnight of {}", "all clients"), task_runner=task_runner)
def overnight(clients: list[ClientName] | None = None) -> State[list[StageResult]]:
    """Stage 1 for the named clients, or all: pull files; then of each VM that is due take its image.

    Args:
        clients: The clients and KVM hosts, as the inventory names them. None means all of them.
    """
    places.require_store()
    return conclude("overnight", with_images_due(begin_each(pull_client, chosen(clients))))
