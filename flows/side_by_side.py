"""Clients side by side: one task per client, inside which its stages run, so that the UI shows a bar per client.

Tasks and not subflows: a subflow costs 0.3 to 2 s on the API, a task run a few milliseconds, and a night has hundreds
of clients. Inside a client's task the stages' tasks are called, never submitted: waiting for a submitted one would hold
the thread that it needs. Tasks bear no tags: for each set of them Prefect asks the server for a limit, one client after
the other (2 s a client, measured with 3.8.8); the client's name is in the run's name.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from tasks import places
from tasks.errors import ClientsFailed, UnknownName
from tasks.model.outcome import Outcome, StageResult

AT_ONCE = 8
ALL = "all clients"
"""Who has a result that is of no client's own."""
NOT_GOOD = (Outcome.FAILED, Outcome.MISSED)
task_runner: Any = ThreadPoolTaskRunner(max_workers=AT_ONCE)
"""The task runner of every flow over clients."""
Work = Callable[[str], list[StageResult]]
Begun = dict[str, PrefectFuture[list[StageResult]]]
"""Work that was begun, by client."""
T = TypeVar("T")


def chosen(clients: Sequence[str] | None) -> list[str]:
    """The named clients, or every client and KVM host of the inventory; UnknownName before anything is started."""
    known = list(places.inventory().systems)
    for name in clients or ():
        if name not in known:
            raise UnknownName("client", name, known)
    return list(dict.fromkeys(clients)) if clients else known


def for_each_client(work: Work, clients: Sequence[str], run_name: str = "{client}") -> list[StageResult]:
    """The results of `work` on each client, in their order; at most AT_ONCE at a time. `run_name` is each task's."""
    return results_of(begin_each(work, clients, run_name))


def begin_each(work: Work, clients: Sequence[str], run_name: str = "{client}") -> Begun:
    """Begin `work` on each client, behind what was begun before; `results_of` waits for it.

    The task of a client that failed ends Failed, so that its bar in the UI is red; the results come back all the same.
    """

    @task(name="client", task_run_name=run_name, cache_policy=NO_CACHE, persist_result=False)
    def one(client: str) -> list[StageResult]:
        with places.connections_kept():
            results = work(client)
        require_good(results)
        return results

    return {client: one.submit(client) for client in clients}


def results_of(begun: Begun) -> list[StageResult]:
    """The results of what was begun, in that order, when all of it has ended."""
    return [result for future in begun.values() for result in _results(future)]


def as_ended(begun: Begun) -> Iterator[str]:
    """The clients whose work has ended, each as soon as it has."""
    names = {future.task_run_id: client for client, future in begun.items()}
    return (names[future.task_run_id] for future in as_completed(list(begun.values())))


def together(works: Sequence[Callable[[], T]]) -> list[T]:
    """The results of independent parts of one client's work, in their order; all end before the first error is raised.

    Each part calls its tasks in a copy of this thread's context, as a task runner would.
    """
    with ThreadPoolExecutor(max_workers=max(1, len(works))) as pool:
        futures = [pool.submit(copy_context().run, work) for work in works]
    return [future.result() for future in futures]


def require_good(results: Sequence[StageResult]) -> None:
    """Raise ClientsFailed, which carries all results, when a client failed."""
    failed = {result.client: result for result in results if result.outcome in NOT_GOOD}
    if failed:
        clients = {result.client for result in results} - {ALL}
        reasons = [f"{name} {result.stage}: {'; '.join(result.reasons)}" for name, result in failed.items()]
        raise ClientsFailed(len(failed), len(clients), reasons, list(results))


def _results(future: PrefectFuture[list[StageResult]]) -> list[StageResult]:
    try:
        return future.result()
    except ClientsFailed as exc:
        results: list[StageResult] = exc.args[3]
        return results
