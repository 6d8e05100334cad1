"""What a run did, by client and stage."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from tasks.model.outcome import StageResult


class Report(BaseModel):
    """The results of one run."""

    model_config = ConfigDict(frozen=True)

    run: str
    ended: datetime
    results: tuple[StageResult, ...]
