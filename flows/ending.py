"""How a run over clients ends: with a report always, Completed only when no client failed."""

from collections.abc import Sequence
from typing import TypeVar

from prefect import State
from prefect.states import Completed

from flows.side_by_side import require_good
from tasks import reports
from tasks.model.outcome import Outcome, StageResult, combined

Data = TypeVar("Data")


def conclude(run: str, results: Sequence[StageResult]) -> State[list[StageResult]]:
    """Publish the report of `run` and end it: ClientsFailed when a client failed, else Completed with its outcome.

    The results are the state's data, and the last argument of ClientsFailed.
    """
    results = list(results)
    reports.publish(run, results)
    clients = {result.client for result in results}
    require_good(results)
    overall = combined(result.outcome for result in results)
    return completed(overall, f"{len(clients)} systems, worst outcome {overall.value}", results)


def completed(outcome: Outcome, message: str, data: Data) -> State[Data]:
    """The state of a run that did what it should; its name tells an outcome that is not OK."""
    name = "Completed" if outcome in (Outcome.OK, Outcome.SKIPPED) else f"Completed: {outcome.value.lower()}"
    return Completed(name=name, message=message, data=data)
