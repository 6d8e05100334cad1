"""The runbook of a VM, from the inventory and the stores. Needs no Prefect run."""

from datetime import UTC, datetime
from pathlib import Path

from tasks.drivers import inventory_file, runbooks
from tasks.drivers.permanent import place_of
from tasks.drivers.runbooks import Stores, Wish
from tasks.drivers.store import Store
from tasks.model.runbook_script import render


def of_vm(vm: str, night: str, host: str | None, *, permanent: bool) -> str:
    """The script that brings the VM back by hand; errors as `runbooks.gather`."""
    declared = inventory_file.load()
    stores = Stores(declared, Store(Path(declared.store.path)), place_of(declared.permanent))
    return render(runbooks.gather(stores, Wish(vm, night, host, permanent), datetime.now(UTC)))
