"""A person's word in Prefect's UI before a recovery acts, with the assessment before their eyes."""

from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from pydantic import Field

from tasks.errors import RecoveryRefused
from tasks.model.assessment import Assessment
from tasks.model.assessment_words import markdown

POLL_S = 5
WAIT_S = 24 * 3600
"""How long an answer is waited for; nothing is locked meanwhile."""


class Approval(RunInput):
    """The form that is shown for a run that waits."""

    approve: bool = Field(False, description="Do it as it was assessed; what changed meanwhile may still refuse it.")


def require_approval(assessment: Assessment) -> None:
    """Wait for the word; RecoveryRefused when it is no."""
    form = Approval.with_initial_data(description=markdown(assessment), approve=False)
    answer = pause_flow_run(wait_for_input=form, timeout=WAIT_S, poll_interval=POLL_S)
    if not answer.approve:
        raise RecoveryRefused(f"VM {assessment.vm}", "it was not approved", "start it again when it is wanted")
