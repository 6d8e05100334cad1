"""The records of VMs that run from the store: `instant/<uuid>.json`, and beside each the lock of its exports."""

from pathlib import Path

from tasks.drivers import instant_export
from tasks.drivers.store import Store, listed_model, read_model, sync_folder, write_model
from tasks.model.instant import InstantRow, InstantState, InstantVm
from tasks.model.names import slug
from tasks.model.recovery_record import PutRecord


def folder_of(store: Store) -> Path:
    """Where the records are."""
    return store.root / "instant"


def exports_lock(store: Store, record: InstantVm) -> Path:
    """The lock that the record's exports hold."""
    return folder_of(store) / f"{slug(record.uuid)}.exports"


def paths(store: Store) -> list[Path]:
    """The records' files, those that cannot be read, too."""
    return sorted(folder_of(store).glob("[!.]*.json"))


def all_of(store: Store) -> list[InstantVm]:
    """The VMs that run from the store, oldest first."""
    found = [listed_model(path, InstantVm) for path in paths(store)]
    return sorted((record for record in found if record is not None), key=lambda record: record.started)


def find(store: Store, vm: str) -> InstantVm | None:
    """The record of the VM with that name or UUID, or None."""
    return next((record for record in all_of(store) if vm in (record.vm, record.uuid)), None)


def of(store: Store, uuid: str) -> InstantVm | None:
    """The record of the VM with that UUID, or None when there is none; IntegrityError when it cannot be read."""
    return read_model(_path(store, uuid), InstantVm)


def write(store: Store, record: InstantVm, state: InstantState) -> InstantVm:
    """Note how far a VM has come; the record as it is now."""
    record = record.model_copy(update={"state": state})
    write_model(path_of(store, record), record)
    return record


def forget(store: Store, record: InstantVm) -> None:
    """The VM does not run from the store any more, and its exports have ended."""
    path_of(store, record).unlink(missing_ok=True)
    sync_folder(folder_of(store))


class Parts:
    """What is put on the host besides the overlays, as part of the record of a VM, for `recovery_put.place_file`."""

    def __init__(self, store: Store, record: InstantVm) -> None:
        self.path = path_of(store, record)

    def read(self) -> PutRecord | None:
        """As of now; None when the VM has no record."""
        record = read_model(self.path, InstantVm)
        return record.put if record is not None else None

    def write(self, record: PutRecord) -> PutRecord:
        """Note which files there are."""
        known = read_model(self.path, InstantVm)
        if known is not None:
            write_model(self.path, known.model_copy(update={"parts": record.files}))
        return record


def rows(store: Store) -> list[InstantRow]:
    """The VMs that run from the store, for listings."""
    return [
        InstantRow(
            vm=record.vm,
            kvm_host=record.kvm_host,
            state=record.state,
            image=record.image,
            night=record.night,
            since=record.started,
            served=instant_export.runs(exports_lock(store, record)),
        )
        for record in all_of(store)
    ]


def path_of(store: Store, record: InstantVm) -> Path:
    """Where the record is."""
    return _path(store, record.uuid)


def _path(store: Store, uuid: str) -> Path:
    return folder_of(store) / f"{slug(uuid)}.json"
