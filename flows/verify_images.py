"""Read published images again, so that damage is found before the day they are needed."""

from pathlib import Path
from typing import Annotated

from prefect import State, flow
from pydantic import Field

from flows.ending import conclude
from flows.run_name import named
from flows.stage import stage
from flows.vm_name import VmName
from tasks import verification
from tasks.model.outcome import Outcome, StageResult

Percent = Annotated[float, Field(gt=0, le=100)]


def _heal_manifest(folder: Path) -> StageResult:
    with stage(folder.parent.name, "verify") as running:
        running.produced = folder.name
        found = verification.heal_manifest(folder)
        running.bytes_moved = found.read_bytes
        running.say(Outcome.WARNING, f"{', '.join(found.healed)}: damaged, and healed by the replica")
    return running.result()


@flow(name="verify-images", flow_run_name=named("vm", "verify images of {}", "all VMs"))
def verify_images(
    vm: VmName | None = None, older_than_days: int = 0, at_most: int | None = None, percent: Percent = 100
) -> State[list[StageResult]]:
    """Read images, longest unread first; one that is damaged fails the run, and the others are read all the same.

    Args:
        vm: The VM, as libvirt names it. None means all.
        older_than_days: Leave out images that were read, or made, more recently.
        at_most: Read no more than so many.
        percent: Read only so much of each disk, chosen by chance. Only a reading of all of it is noted as one.
    """
    results = [_heal_manifest(folder) for folder in verification.unreadable()] if vm is None else []
    for folder, image in verification.choose(vm, older_than_days, at_most):
        with stage(image.vm, "verify") as running:
            running.produced = image.id
            found = verification.verify(folder, image, percent)
            running.bytes_moved = found.read_bytes
            if found.healed:
                running.say(Outcome.WARNING, f"{', '.join(found.healed)}: damaged, and healed by the replica")
        results.append(running.result())
    return conclude("verify-images", results)
