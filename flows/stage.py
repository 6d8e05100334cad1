"""One stage of one client: whatever happens inside becomes an honest outcome, and stays the client's own."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from tasks.errors import GbsError
from tasks.model.outcome import Outcome, StageResult, worst

log = logging.getLogger(__name__)


class Stage:
    """A stage that runs; it starts OK and only gets worse."""

    def __init__(self, client: str, name: str) -> None:
        self.client, self.name = client, name
        self.started = datetime.now(UTC)
        self.outcome = Outcome.OK
        self.reasons: list[str] = []
        self.bytes_moved = 0
        self.produced = ""

    def say(self, outcome: Outcome, reason: str) -> None:
        """Note something that makes the outcome at least this bad."""
        self.outcome = worst((self.outcome, outcome))
        self.reasons.append(reason)
        level = logging.ERROR if outcome is Outcome.FAILED else logging.WARNING
        log.log(logging.INFO if outcome is Outcome.SKIPPED else level, "%s of %s: %s", self.name, self.client, reason)

    def result(self) -> StageResult:
        """The stage's result as of now."""
        return StageResult(
            client=self.client,
            stage=self.name,
            outcome=self.outcome,
            reasons=tuple(self.reasons),
            started=self.started,
            ended=datetime.now(UTC),
            bytes_moved=self.bytes_moved,
            produced=self.produced,
        )


@contextmanager
def stage(client: str, name: str) -> Iterator[Stage]:
    """A Stage whose body's errors become FAILED with one clear line."""
    running = Stage(client, name)
    try:
        yield running
    except GbsError as exc:
        running.say(Outcome.FAILED, str(exc))
    except Exception as exc:
        log.exception("%s of %s: unexpected", name, client)
        running.say(Outcome.FAILED, f"unexpected {type(exc).__name__}: {exc}")


def skipped(client: str, name: str, reason: str) -> StageResult:
    """The result of a stage that was not run, and why."""
    running = Stage(client, name)
    running.say(Outcome.SKIPPED, reason)
    return running.result()
