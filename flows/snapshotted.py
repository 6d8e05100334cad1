"""A client's snapshots, around the pull of its files."""

from collections.abc import Iterator
from contextlib import contextmanager

from flows.stage import Stage
from tasks import places, snapshots
from tasks.errors import CommandFailed, GbsError
from tasks.model.client_snapshot import SnapshotTree
from tasks.model.outcome import Outcome
from tasks.model.prepared import Prepared


@contextmanager
def snapshotted(running: Stage, prepared: Prepared) -> Iterator[SnapshotTree | None]:
    """Give what the block is to read in place of the client's files; None when no snapshots are asked for.

    They are removed whatever happens, those of an earlier run before. A block that read from one that did not last
    fails with SourceRefused.
    """
    client = running.client
    if not remove_snapshots(running):
        yield None
        return
    try:
        tree = snapshots.make(client, prepared)
        for line in tree.warnings:
            running.say(Outcome.WARNING, line)
        try:
            yield tree
        except CommandFailed as exc:
            if not exc.transient:  # what filled up is read with errors
                snapshots.require_whole(client, tree)
            raise
        snapshots.require_whole(client, tree)
    finally:
        remove_snapshots(running)


def remove_snapshots(running: Stage) -> bool:
    """Remove what is left of ours on the stage's client, a WARNING for what cannot be; False when it never has any."""
    system, _ = places.system_of(running.client)
    if system.snapshot == "none":
        return False
    try:
        for line in snapshots.remove(running.client):
            running.say(Outcome.WARNING, line)
    except GbsError as exc:
        running.say(Outcome.WARNING, f"its snapshots could not be removed: {exc}")
    return True
