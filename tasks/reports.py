"""What a run did, kept in the store and shown in the UI as a table."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from prefect.artifacts import create_table_artifact

from tasks import places
from tasks.drivers.store import write_model
from tasks.model.names import human_age, human_bytes, new_id
from tasks.model.outcome import Outcome, StageResult, combined
from tasks.model.report import Report
from tasks.retryable import retryable


def table(results: Sequence[StageResult]) -> list[dict[str, str]]:
    """One row a client and stage, the worst first."""
    order = list(Outcome)
    return [
        {
            "client": result.client,
            "stage": result.stage,
            "outcome": result.outcome.value,
            "reason": "; ".join(result.reasons),
            "took": human_age(result.duration_s),
            "moved": human_bytes(result.bytes_moved) if result.bytes_moved else "",
            "produced": result.produced,
        }
        for result in sorted(results, key=lambda result: -order.index(result.outcome))
    ]


@retryable("report", "report of {run}", retries=1)
def publish(run: str, results: list[StageResult]) -> Path:
    """Keep the report in the store and show it as the run's artifact; the report's path."""
    now = datetime.now(UTC)
    path = places.store().reports / f"{run}-{new_id(now)}.json"
    write_model(path, Report(run=run, ended=now, results=tuple(results)))
    overall = combined(result.outcome for result in results)
    create_table_artifact(
        table=table(results), key=f"{run}-report", description=f"**{overall.value}** · kept as {path.name}"
    )
    return path
