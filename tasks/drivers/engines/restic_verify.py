"""restic's points read again: packs by restic, what is damaged by point, healed where that is safe."""

import logging
from collections.abc import Mapping

from tasks.drivers import restic
from tasks.drivers.engines.cascade import Copy
from tasks.drivers.point_check import Checked
from tasks.drivers.restic_heal import Good, heal
from tasks.drivers.restic_repository import Repository
from tasks.errors import CommandFailed, IntegrityError
from tasks.model.manifest import MANIFEST
from tasks.model.names import one_line
from tasks.model.verify_choice import WHOLE

log = logging.getLogger(__name__)


def verified(repository: Repository, points: Mapping[str, Copy], percent: float, good: Good) -> list[Checked]:
    """What a reading of `percent` of the packs found, by point; the newest one tells how many bytes were read.

    IntegrityError when restic finds damage that is no point's.
    """
    if not points:
        return []
    read = restic.check(repository, percent, good.deadline_s)
    said = one_line(read.said)
    log.info("%s: restic read %d packs%s", good.host, read.packs, said and f": {said}")
    hits = restic.hits_of(repository, read.damaged, good.deadline_s) if said else []
    healed = bool(said) and heal(repository, read.damaged, hits, good)
    if healed and (again := restic.check(repository, percent, good.deadline_s).said):
        log.warning("%s is still damaged: %s", repository.url, one_line(again))
        healed = False
    read_bytes, found = _size_bytes(repository, percent, good), list[Checked]()
    for name, copy in points.items():
        paths = {hit.path.removeprefix("/data") for hit in hits or () if hit.snapshot == copy.key}
        damaged = tuple(sorted(paths)) if hits is not None else (f"the repository: {said}",)
        lost = () if copy.manifest else (f"{MANIFEST}: cannot be read",)
        files = copy.manifest.files if copy.manifest and percent >= WHOLE else 0
        row = Checked(name, copy.night, files, read_bytes, (*lost, *damaged), damaged if healed else ())
        found, read_bytes = [*found, row], 0
    if said and not healed and not any(row.damaged for row in found):
        # No point is hit, but the repository is not what it should be, and an operator must know.
        raise IntegrityError(repository.url, "a whole repository", said)
    return found


def _size_bytes(repository: Repository, percent: float, good: Good) -> int:
    """How much was read: of a sample its part of all, as restic chooses packs by their number."""
    try:
        return int(restic.stored_bytes(repository, good.deadline_s) * min(percent, WHOLE) / WHOLE)
    except CommandFailed as exc:
        log.info("%s: how much was read is not known: %s", good.host, exc)
        return 0
