"""What an operator wants run on a client around a stage."""

import logging
from collections.abc import Sequence

from tasks import places
from tasks.drivers import ssh
from tasks.drivers.progress import reporting
from tasks.model.platform import Platform
from tasks.retryable import retryable

log = logging.getLogger(__name__)


@retryable("hook", "hook {when} {stage} of {client}", retries=0)
def run_hook(client: str, stage: str, when: str, command: Sequence[str], deadline_s: int) -> None:
    """Run the command on the client; CommandFailed when it fails or takes longer, Unreachable as ssh.

    On Linux it is ended when it takes longer; elsewhere it is left alone.
    """
    system, _ = places.system_of(client)
    called = f"hook {when} {stage}"
    with ssh.connect(places.target_of(client)) as shell, reporting(log, f"{called} of {client}"):
        if system.platform is Platform.LINUX:
            shell.run_to_end(list(command), deadline_s=deadline_s, name=called)
        else:
            shell.run(system.profile.line(command), deadline_s=deadline_s, name=called)
