"""Snapshots of a client's file systems, for the time that its files are pulled."""

import logging
from datetime import UTC, datetime

from tasks import places
from tasks.drivers import client_snapshot, ssh
from tasks.drivers.progress import reporting
from tasks.model.client_snapshot import SnapshotTree
from tasks.model.prepared import Prepared, paths_of
from tasks.retryable import retryable

log = logging.getLogger(__name__)


@retryable("make snapshots", "make snapshots of {client}", retries=0)
def make(client: str, prepared: Prepared) -> SnapshotTree:
    """Make and mount them; what they are of, and what is read live."""
    system, _ = places.system_of(client)
    with ssh.connect(places.target_of(client)) as shell, reporting(log, f"make snapshots of {client}"):
        paths, room_percent = paths_of(system, prepared), system.snapshot_room_percent
        return client_snapshot.make(shell, paths, system.snapshot, room_percent, datetime.now(UTC))


@retryable("check snapshots", "check snapshots of {client}")
def require_whole(client: str, tree: SnapshotTree) -> None:
    """SourceRefused when one of them filled up or went away while the files were pulled."""
    system, _ = places.system_of(client)
    with ssh.connect(places.target_of(client)) as shell:
        client_snapshot.require_whole(shell, tree, system.snapshot_room_percent)


@retryable("remove snapshots", "remove snapshots of {client}")
def remove(client: str) -> list[str]:
    """Remove all of ours, of whatever run; a line for each that stays behind."""
    with ssh.connect(places.target_of(client)) as shell, reporting(log, f"remove snapshots of {client}"):
        return client_snapshot.clear(shell)
