"""The engines that keep restore points behind one contract: `rsnapshot`, `restic`, and `command`, a vendor's own.

Whatever the engine: a sync is no point before it is stamped and taken in by a rotation; one that is not like the others
is held before that (`tasks.drivers.held_nights`); retention is our own plan over the age of the content
(`tasks.model.retention`) wherever the engine lets go of what it is told to; pins, readings, the stamp and held nights
lie in the client's folder of the permanent store, which is proven before anything is written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tasks.drivers.permanent import PermanentPlace
from tasks.drivers.point_check import Checked
from tasks.drivers.store import Store
from tasks.model.anomaly import Change
from tasks.model.inventory import Policy
from tasks.model.manifest import NightManifest
from tasks.model.names import slug
from tasks.model.retention import SYNC, Move, Point

Advance = Callable[[int, int], None]
"""Told bytes done and bytes in all."""


@dataclass(frozen=True)
class Ground:
    """What an engine works between: a client's overnight copy, and the permanent store."""

    client: str
    policy: Policy
    store: Store
    place: PermanentPlace
    reserve_bytes: int = 0

    @property
    def root(self) -> Path:
        """The client's folder of the permanent store."""
        return self.place.path / slug(self.client)


class Engine(Protocol):
    """What keeps a client's restore points. The caller holds the client's lock but where it only looks."""

    @property
    def ground(self) -> Ground:
        """What it works between."""

    @property
    def on_permanent(self) -> bool:
        """Whether the points can only be read where the permanent store is."""

    @property
    def forgets(self) -> bool:
        """Whether it lets go of what it is told to; else what is kept is its own affair."""

    def where(self, point: str) -> str:
        """What messages call a point."""

    def points(self) -> dict[str, NightManifest | None]:
        """The restore points by name, newest intervals first; None without a good manifest."""

    def folder(self, point: str) -> Path | None:
        """Where a point lies for everybody to read; None when it must be opened."""

    def read(self, point: str, path: str) -> bytes | None:
        """A file (`SHA256SUMS`, `data/…`) of a point that lies in no folder; None when only all of it can be read."""

    def retained(self) -> list[Point]:
        """The same points as retention looks at them."""

    def sync(self, night: NightManifest, advance: Advance) -> tuple[str, ...]:
        """Bring the overnight copy, which is of that night, to where it is kept; warnings.

        What arrived is proven and stamped with the manifest; a point it becomes by `rotate`. After a failure, or a
        kill, the points are what they were, and the next call succeeds. Raises StoreFull, AccessDenied, StoreError,
        CommandFailed, IntegrityError when what arrived is not the night.
        """

    def changes(self) -> tuple[Change | None, tuple[str, ...]]:
        """The stamped sync against the newest point whose listing is whole, None without one; and newer points.

        The overnight copy is what was synced. IntegrityError without a stamped sync.
        """

    def planned(self, sync: str) -> list[Move]:
        """The moves that `rotate` would make."""

    def rotate(self, sync: str = SYNC) -> list[Move]:
        """Take the stamped sync in and give up what the policy no longer keeps; [] when it is no newer.

        `sync` is its folder below the root, the fresh one or a held night's, and is gone then. IntegrityError without a
        stamped sync, or when the newest point is of a later time.
        """

    def tidy(self) -> None:
        """Remove what was given up and is due by now, held nights too, and what failed runs left."""

    def open(self, point: str, advance: Advance) -> Path:
        """A folder with the whole night: data/, SHA256SUMS, facts.json, manifest.json. It is only read, then closed.

        NothingToRecover when there is no such point, StoreFull before anything is written, IntegrityError when the
        listing or the facts are not the manifest's. The files are not read.
        """

    def close(self, point: str) -> None:
        """Remove what `open` made, if it did."""

    def verify(self, percent: float) -> list[Checked]:
        """Read `percent` of what is kept; what is damaged, and what of that could be healed."""
