"""A stage between the hooks of its client."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from flows.stage import Stage
from tasks import hooks, places
from tasks.errors import GbsError
from tasks.model.inventory_systems import Hook
from tasks.model.outcome import Outcome


@contextmanager
def hooked(running: Stage) -> Iterator[None]:
    """Run the hooks of the stage's client before and after the block, those after in reverse order.

    A hook before that fails ends the stage: what it should have prepared is not there. One after that fails makes the
    outcome PARTIAL: the application may still wait for it.
    """
    system, _ = places.system_of(running.client)
    with ExitStack() as afterwards:
        for hook in system.hooks:
            if hook.stage == running.name:
                afterwards.callback(_after, running, hook)
                if hook.before:
                    hooks.run_hook(running.client, running.name, "before", hook.before, hook.deadline_s)
        yield


def _after(running: Stage, hook: Hook) -> None:
    if hook.after:
        try:
            hooks.run_hook(running.client, running.name, "after", hook.after, hook.deadline_s)
        except GbsError as exc:
            running.say(Outcome.PARTIAL, str(exc))
