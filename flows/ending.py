"""How a run over clients ends: with a report always, Completed only when no client failed."""

from collections.abc import Sequence

from prefect import State
from prefect.states import Completed

from tasks import reports
from tasks.errors import ClientsFailed
from tasks.model.outcome import Outcome, StageResult, worst

NOT_GOOD = (Outcome.FAILED, Outcome.MISSED)


def conclude(run: str, results: Sequence[StageResult]) -> State[list[StageResult]]:
    """Publish the report of `run` and end it: ClientsFailed when a client failed, else Completed with its outcome.

    The results are the state's data, and the last argument of ClientsFailed.
    """
    results = list(results)
    reports.publish(run, results)
    clients = {result.client for result in results}
    failed = {result.client: result for result in results if result.outcome in NOT_GOOD}
    if failed:
        reasons = [f"{name} {result.stage}: {'; '.join(result.reasons)}" for name, result in failed.items()]
        raise ClientsFailed(len(failed), len(clients), reasons, results)
    overall = worst(result.outcome for result in results)
    name = "Completed" if overall in (Outcome.OK, Outcome.SKIPPED) else f"Completed: {overall.value.lower()}"
    return Completed(name=name, message=f"{len(clients)} clients, worst outcome {overall.value}", data=results)
