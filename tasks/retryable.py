"""The one way GBS declares a Prefect task: never cached, retried only for transient errors."""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext

from tasks.errors import is_transient
from tasks.model.names import human_age

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
RETRY_DELAYS_S = [5.0, 30.0]


def retryable(name: str, run_name: str | None = None, *, retries: int = 2) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Declare a task by its name in the UI; `run_name` is a template over its parameters (default: the name).

    A failure is retried after RETRY_DELAYS_S only when its error says that it is transient. NO_CACHE because every
    task here has side effects, and Prefect may otherwise skip a second equal call in the same run.
    """

    declare = task(
        name=name,
        task_run_name=run_name or name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=RETRY_DELAYS_S[:retries],
        retry_condition_fn=_failed_for_now,
    )
    return lambda function: declare(_telling(function))


def _telling(function: Callable[P, R]) -> Callable[P, R]:
    """The function, saying by the run's name that it begins, and how long it took if that was worth a word.

    Not Prefect's hooks: it logs four lines of its own about each pair of them.
    """

    @functools.wraps(function)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        context = TaskRunContext.get()
        called = context.task_run.name if context else function.__name__
        log.info("%s ...", called)
        began = time.monotonic()
        result = function(*args, **kwargs)
        if (took_s := time.monotonic() - began) >= 1:
            log.info("%s: done in %s", called, human_age(took_s))
        return result

    return told


def _failed_for_now(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)
