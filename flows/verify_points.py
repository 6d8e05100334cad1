"""Read restore points again where they lie, so that damage is found, and healed, before the day they are needed."""

from prefect import State, flow

from flows.ending import conclude
from flows.run_name import named
from flows.side_by_side import chosen
from flows.stage import stage
from flows.verify_images import Percent
from flows.vm_name import ClientName
from tasks import places, points
from tasks.errors import Locked
from tasks.model.outcome import Outcome, StageResult


@flow(name="verify-points", flow_run_name=named("clients", "verify restore points of {}", "all clients"))
def verify_points(clients: list[ClientName] | None = None, percent: Percent = 100) -> State[list[StageResult]]:
    """Read restore points, client by client; one that stays damaged fails the run, the others are read all the same.

    Args:
        clients: The clients and KVM hosts, as the inventory names them. None means all of them.
        percent: Read only so many of the files, chosen by chance; others each time.
    """
    results = []
    for client in chosen(clients):
        with stage(client, "verify") as running:
            try:
                with places.locked("client", client):
                    found = points.verify(client, percent)
            except Locked as exc:
                running.say(Outcome.SKIPPED, f"{exc}; it has its turn the next time")
                results.append(running.result())
                continue
            running.bytes_moved = sum(row.read_bytes for row in found)
            healed = {path for row in found for path in row.healed}
            if healed:
                running.say(Outcome.WARNING, f"{len(healed)} damaged files were healed by good copies, see the log")
            if not found:
                running.say(Outcome.SKIPPED, "it has no restore points")
        results.append(running.result())
    return conclude("verify-points", results)
