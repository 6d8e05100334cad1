"""A volume for a store, with VDO beneath: how it would be made, and making it. Needs no Prefect."""

import logging
from pathlib import Path

from tasks.drivers import vdo
from tasks.drivers.progress import reporting
from tasks.model.vdo import Setup, setup, size_from

log = logging.getLogger(__name__)


def plan(device: Path, name: str, logical_size: str | None, mountpoint: Path) -> Setup:
    """What would be done on a block device, which is only asked for its size. ConfigError when that cannot be."""
    return setup(device, vdo.size_of(device), name, size_from(logical_size) if logical_size else None, mountpoint)


def make(planned: Setup) -> None:
    """Do it, as root: what is in the way is a ConfigError, a step that fails LeftBehind with what undoes the others."""
    with reporting(log, f"make {planned.name}") as progress:
        vdo.make(planned, lambda step: progress.say(step.line))
