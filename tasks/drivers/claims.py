"""Which working copies in the store are in use, by the records of recoveries and of VMs that run from the store."""

from pathlib import Path

from tasks.drivers import instant_records, recovery_put
from tasks.drivers.store import Store, read_model
from tasks.model.instant import InstantVm
from tasks.model.recovery_record import PutRecord


def claimed(store: Store) -> set[Path]:
    """The folders that records name; IntegrityError while a record cannot be read, as its folder is not known."""
    records = [
        *(read_model(path, PutRecord) for path in recovery_put.paths(store)),
        *(read_model(path, InstantVm) for path in instant_records.paths(store)),
    ]
    return {Path(record.working_copy) for record in records if record is not None and record.working_copy is not None}
