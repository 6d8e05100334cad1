"""The one way GBS declares a Prefect task: never cached, retried only for transient errors."""

import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from tasks.errors import is_transient
from tasks.model.names import human_age

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
RETRY_DELAYS_S = [5.0, 30.0]


def retryable(name: str, run_name: str | None = None, *, retries: int = 2) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Declare a task by its name in the UI; `run_name` is a template over its parameters.

    A failure is retried after RETRY_DELAYS_S only when its error says that it is transient. NO_CACHE because every
    task here has side effects, and Prefect may otherwise skip a second equal call in the same run.
    """

    return task(
        name=name,
        task_run_name=run_name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=RETRY_DELAYS_S[:retries],
        retry_condition_fn=_failed_for_now,
        on_running=[_say_began],
        on_completion=[_say_done],
    )


def _is_no_hook_line(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(("Running hook ", "Hook "))


# Prefect tells of each hook twice: four lines a task, in the run's log, around the two that say something.
logging.getLogger("prefect.task_runs").addFilter(_is_no_hook_line)


def _say_began(_task: Task[..., Any], run: TaskRun, _state: State[Any]) -> None:
    log.info("%s ...", run.name)


def _say_done(_task: Task[..., Any], run: TaskRun, _state: State[Any]) -> None:
    took = f" in {human_age(run.total_run_time.total_seconds())}" if run.total_run_time else ""
    log.info("%s: done%s", run.name, took)


def _failed_for_now(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)
