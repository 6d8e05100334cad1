"""The GBS server's own store: proven to be the right one before anything is written to it, or told from it.

It is a file system of its own. When that is not mounted, its mount point is an empty folder like any other: a night
would fill the server's root, take every image anew, and know nothing of an open snapshot window. So it has a marker.
"""

from pathlib import Path

from tasks.drivers.store import Store
from tasks.errors import StoreNotMounted
from tasks.model.inventory import Inventory

MARKER = ".gbs-near-store"
"""Not the permanent store's: that one, mounted here by mistake, would pass for this.

An operator makes it, once: a program that made it in an empty folder would mark the mount point some day.
"""


def proven(root: Path) -> Store:
    """The store at `root`; StoreNotMounted when its marker is not there."""
    if not (root / MARKER).exists():
        fix = f"mount it; if this is the right place: touch {root / MARKER}"
        raise StoreNotMounted(str(root), f"the marker {MARKER} is missing", fix)
    return Store(root)


def of(declared: Inventory) -> Store:
    """The store of an inventory, for those who do without Prefect's blocks; StoreNotMounted as `proven`."""
    return proven(Path(declared.store.path))
