"""Drills in the store: a folder each with manifest and picture, the newest few of a VM, and their metrics."""

import os
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from tasks.drivers import lock, recovery_put
from tasks.drivers.store import Store, discard, listed_model, publish, write_model
from tasks.model.drill import PICTURE, Drilled, UnfinishedDrill
from tasks.model.manifest import MANIFEST
from tasks.model.names import time_of_id
from tasks.model.outcome import Outcome

KEPT = 12


def drills_of(store: Store, vm: str) -> list[Drilled]:
    """The drills of a VM, newest first; one whose manifest cannot be read is left out."""
    found = (listed_model(path, Drilled) for path in store.drills(vm).glob(f"[!.]*/{MANIFEST}"))
    mine = [drilled for drilled in found if drilled is not None and drilled.vm == vm]
    return sorted(mine, key=lambda drilled: drilled.id, reverse=True)


def unfinished(store: Store) -> list[UnfinishedDrill]:
    """The drills that have not ended, by what recoveries note before they put anything on a KVM host."""
    return [
        UnfinishedDrill(
            vm=left.vm,
            name=left.name,
            uuid=left.uuid,
            kvm_host=left.kvm_host,
            image=left.image,
            night=left.night,
            since=time_of_id(left.run.partition("-")[0]),
            runs=lock.is_held(store.lock("vm", left.uuid)),
        )
        for left in recovery_put.unfinished(store)
        if left.is_drill
    ]


def last_proven(store: Store, vm: str) -> Drilled | None:
    """The newest drill of a VM that ended well."""
    return next((drilled for drilled in drills_of(store, vm) if drilled.outcome is Outcome.OK), None)


def record(store: Store, drilled: Drilled, shown: bytes) -> Path:
    """Keep a drill and the picture of its console; the folder. Older ones go but for KEPT, and the last good one."""
    folder = store.drills(drilled.vm)
    final, partial = folder / drilled.id, folder / f".{drilled.id}"
    discard(partial, store.trash, partial.name)
    partial.mkdir(parents=True)
    if shown:
        (partial / PICTURE).write_bytes(shown)
    write_model(partial / MANIFEST, drilled)
    publish(partial, final)
    proven = last_proven(store, drilled.vm)
    for old in drills_of(store, drilled.vm)[KEPT:]:
        if proven is None or old.id != proven.id:
            discard(folder / old.id, store.trash, old.id)
    return final


def publish_metrics(store: Store, vms: Sequence[str]) -> Path:
    """Write what the drills of all VMs came to as node_exporter's textfile collector reads it; the file.

    A VM that was never proven has no time of it, and its absence is what an alert looks for.
    """
    registry = CollectorRegistry()

    def gauge(name: str, text: str) -> Gauge:
        return Gauge(f"gbs_drill_{name}", text, ["vm"], registry=registry)

    ended = gauge("end_timestamp_seconds", "When the last drill of a VM ended.")
    good = gauge("good", "Whether the last drill of a VM ended well.")
    proven = gauge("proven_timestamp_seconds", "When a VM was last proven restorable.")
    recovery = gauge("recovery_seconds", "How long the last good drill took until all probes held.")
    age = gauge("data_age_seconds", "How old the files were in the last good drill.")
    for vm in vms:
        if (newest := next(iter(drills_of(store, vm)), None)) is not None:
            ended.labels(vm).set(newest.ended.timestamp())
            good.labels(vm).set(newest.outcome is Outcome.OK)
        if (last := last_proven(store, vm)) is not None:
            proven.labels(vm).set(last.ended.timestamp())
            recovery.labels(vm).set(last.recovery_s)
            if last.data_age is not None:
                age.labels(vm).set(last.data_age.total_seconds())
    path = store.root / "metrics" / "gbs.prom"
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_to_textfile(os.fspath(path), registry)
    return path
