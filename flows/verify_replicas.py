"""Read replicas again where they lie, so that damage is found, and healed, before the day they are needed."""

from prefect import State, flow

from flows.ending import conclude
from flows.stage import stage
from flows.verify_images import Percent
from tasks import places, replication
from tasks.errors import Locked
from tasks.model.outcome import Outcome, StageResult


@flow(name="verify-replicas", flow_run_name="verify replicas")
def verify_replicas(
    older_than_days: int = 0, at_most: int | None = None, percent: Percent = 100
) -> State[list[StageResult]]:
    """Read replicas, longest unread first; one that stays damaged fails the run, the others are read all the same.

    Args:
        older_than_days: Leave out replicas that were read, or made, more recently.
        at_most: Read no more than so many.
        percent: Read only so much of each disk, chosen by chance. Only a reading of all of it is noted as one.
    """
    results = []
    for replica in replication.choose(older_than_days, at_most):
        with stage(replica.called, "verify") as running:
            running.produced = replica.place
            try:
                with places.locked("replica", replica.called):
                    found = replication.verify(replica, percent)
            except Locked as exc:
                running.say(Outcome.SKIPPED, f"{exc}; it has its turn the next time")
                results.append(running.result())
                continue
            running.bytes_moved = found.read_bytes
            if found.healed:
                running.say(Outcome.WARNING, f"{', '.join(found.healed)}: damaged, and healed by the original")
        results.append(running.result())
    return conclude("verify-replicas", results)
