"""restic as an engine: a repository for each client, encrypted; a point is a snapshot that is tagged so.

A night's tags are `gbs-sync` when it is made, `gbs-point` when a rotation took it in, `gbs-trash-<day>` when one gave
it up; `night-<id>` stays. One that is held stays `gbs-sync`: that it is held says its folder in the permanent store.
restic writes a snapshot after all that it refers to: what a kill leaves is none, or whole.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ConfigDict

from tasks.drivers import restic
from tasks.drivers.engines import Advance, Ground, cascade
from tasks.drivers.engines.cascade import Copy, PointsByAge, Stamp
from tasks.drivers.engines.restic_manifests import Manifests
from tasks.drivers.engines.restic_sample import SnapshotSample
from tasks.drivers.engines.restic_verify import verified
from tasks.drivers.night_changes import compare
from tasks.drivers.permanent import at, watching
from tasks.drivers.point_check import Checked
from tasks.drivers.process import Watch
from tasks.drivers.restic import Snapshot
from tasks.drivers.restic_heal import Good, clear
from tasks.drivers.restic_repository import QUICK_S, Repository
from tasks.drivers.space import require_space
from tasks.drivers.store import read_model, verify_night, write_model
from tasks.errors import CommandFailed, IntegrityError, StoreFull, StoreNotMounted
from tasks.model.anomaly import Change
from tasks.model.inventory_engines import Restic, filled
from tasks.model.manifest import LISTING, MANIFEST, NightManifest
from tasks.model.names import slug
from tasks.model.retention import SYNC as FRESH
from tasks.model.retention import Move

SYNC, POINT, TRASH, NIGHT = "gbs-sync", "gbs-point", "gbs-trash-", "night-"
FACTS = "facts.json"
CONTENT = ("data", LISTING, FACTS, MANIFEST)
RECORD = ".restic.json"
LONGEST_PATH = 4095
PACKS_BYTES = 128 << 20
"""What restic writes at once: several packs of 16 MiB and more."""


class Made(BaseModel):
    """That a repository was made: where it is gone, none is made in its place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: str


@dataclass(frozen=True)
class ResticEngine(PointsByAge):
    """Points are snapshots; they are named by their age."""

    ground: Ground
    declared: Restic
    forgets: bool = True

    @cached_property
    def _repository(self) -> Repository:
        url = self.declared.repository
        at_home = str(self.ground.root / "restic")
        where = filled((url,), client=slug(self.ground.client))[0] if url else at_home
        return Repository(
            where,
            Path(self.declared.password_file),
            Path(self.declared.environment_file) if self.declared.environment_file else None,
            self.ground.store.root / "restic" / "cache",
            watching(self.ground.place) if self.on_permanent else None,
        )

    @cached_property
    def _manifests(self) -> Manifests:
        client = self.ground.client
        return Manifests(client, self._repository, self.ground.store.root / "restic" / slug(client))

    @property
    def on_permanent(self) -> bool:
        """As the contract says."""
        url = self.declared.repository
        return url is None or Path(url).is_relative_to(self.ground.place.path)

    def where(self, point: str) -> str:
        """As the contract says."""
        return f"{self._repository.url} {point}"

    def sync(self, night: NightManifest, advance: Advance) -> tuple[str, ...]:
        """A snapshot of the night, whose listing and facts are brought back and compared."""
        cascade.make_root(self.ground)
        found = self._opened()
        cascade.unstamp(self.ground)
        aside = cascade.aside(self.ground)
        waiting = [one.stamp for one in aside if one.stamp and _snapshot(found, one.stamp)]
        there = [
            *((copy.key, copy.manifest) for copy in self._copies(found)),
            *((one.key, one.night) for one in waiting),
        ]
        if (present := next((key for key, manifest in there if manifest == night), None)) is not None:
            cascade.stamp(self.ground, present, night)
            return ()
        folder = self.ground.store.overnight(self.ground.client)
        made = self._backup(folder, night, advance)
        try:
            self._prove(made, night)
        except IntegrityError:
            restic.forget(self._repository, [made.id])
            raise
        held = [_snapshot(found, stamp) for stamp in waiting]
        unclear = {f"{NIGHT}{one.night}" for one in aside if not one.stamp}  # a damaged folder tells no more
        left = [one.id for one in found if SYNC in one.tags and one not in held and not unclear & {*one.tags}]
        restic.forget(self._repository, left)
        cascade.stamp(self.ground, made.id, night)
        return self._too_long(folder)

    def compared(self, copy: Copy, old: NightManifest, night: NightManifest) -> Change:
        """The listing, and of a sample the older versions, are brought to the store for it."""
        store, deadline_s = self.ground.store, self.ground.policy.transfer_deadline_s
        with TemporaryDirectory(prefix=".sample-", dir=store.root) as folder:
            sample = SnapshotSample(self._repository, copy.key, Path(folder), self.ground.reserve_bytes, deadline_s)
            return compare(sample, old, store.overnight(self.ground.client), night)

    def rotate(self, sync: str = FRESH) -> list[Move]:
        """Tags are changed; what was given up is forgotten by `tidy` when its day has come."""
        stamp, found = cascade.stamped(self.ground, sync), self._snapshots() or []
        points = cascade.arranged(self.ground, self._copies(found))
        moves = self.moves(points, stamp, sync)
        if moves:
            snapshot = _snapshot(found, stamp)
            if snapshot is None:
                raise IntegrityError(self._repository.url, f"snapshot {stamp.key} of night {stamp.night.id}", "none")
            # The manifest of a new point is known: it need not be read from the repository.
            self._manifests.keep(snapshot, stamp.night)
            restic.retag(self._repository, [snapshot.id], add=POINT, remove=SYNC)
            due = datetime.now(UTC) + timedelta(days=self.ground.policy.trash_days)
            leaving = [points[name].key for name in cascade.given_up(moves)]
            restic.retag(self._repository, leaving, add=f"{TRASH}{due:%Y-%m-%d}", remove=POINT)
        cascade.unstamp(self.ground, sync)
        return moves

    def forget(self, keys: Collection[str]) -> None:
        """What nothing refers to any more is pruned."""
        clear(self._repository)
        found = self._snapshots() or []
        today = datetime.now(UTC).date()
        held = [snapshot for snapshot in found if SYNC in snapshot.tags and snapshot.id.startswith(tuple(keys))]
        due = [
            snapshot.id for snapshot in found if snapshot in held or any(_is_due(tag, today) for tag in snapshot.tags)
        ]
        restic.forget(self._repository, due, prune_deadline_s=self.ground.policy.transfer_deadline_s)
        self._manifests.keep_only(found)

    def read(self, point: str, path: str) -> bytes | None:
        """As the contract says."""
        found = self.arranged().get(point)
        return restic.dump(self._repository, found.key, f"/{path}") if found else None

    def open(self, point: str, advance: Advance) -> Path:
        """As the contract says; sockets are not brought back, and holes are filled."""
        found = self.arranged().get(point)
        deadline_s = self.ground.policy.transfer_deadline_s

        def bring(folder: Path, on_wait: Watch) -> None:
            assert found is not None  # noqa: S101 - `scratch` has asked
            restic.restore(self._repository, found.key, folder, deadline_s=deadline_s, on_wait=on_wait)

        return cascade.scratch(self.ground, point, found, advance, bring)

    def verify(self, percent: float) -> list[Checked]:
        """restic reads its packs, and what can be had again of damaged ones is stored."""
        store, client = self.ground.store, self.ground.client
        good = Good(
            client,
            store.overnight(client),
            CONTENT,
            store.opened(client) / "heal",
            self.ground.policy.transfer_deadline_s,
            self._require_room,
            lambda: require_space(store.root, 0, self.ground.reserve_bytes),
        )
        return verified(self._repository, self.arranged(), percent, good)

    def _backup(self, folder: Path, night: NightManifest, advance: Advance) -> restic.Made:
        try:
            self._require_room()
        except StoreFull:
            restic.prune(self._repository, self.ground.policy.transfer_deadline_s)  # what failed runs left may fill it
            self._require_room()
        try:
            return restic.backup(
                self._repository,
                folder,
                CONTENT,
                host=self.ground.client,
                instant=night.ended,
                tags=[SYNC, f"{NIGHT}{night.id}"],
                deadline_s=self.ground.policy.transfer_deadline_s,
                on_progress=advance,
                on_wait=self._require_room,
            )
        except CommandFailed:
            self._require_room()
            raise

    def _require_room(self) -> None:
        """StoreFull while there is still some room.

        restic 0.14 that runs into a full store says so, or crashes, or waits for itself for ever; and what is full
        cannot be pruned.
        """
        if not self.on_permanent:
            return
        status = at(self.ground.place, os.statvfs, self.ground.root)
        free_bytes = status.f_bavail * status.f_frsize
        if free_bytes < PACKS_BYTES:
            raise StoreFull(self._repository.url, PACKS_BYTES, free_bytes)

    def _opened(self) -> list[Snapshot]:
        """The snapshots of the repository, which is made when there never was one."""
        found = self._snapshots()
        if found is None:
            restic.initialise(self._repository)
        at(self.ground.place, _record, self.ground.root / RECORD, Made(repository=self._repository.url))
        return found or []

    def _snapshots(self) -> list[Snapshot] | None:
        """Every snapshot; None when there never was a repository, StoreNotMounted when there was one."""
        found, record = restic.snapshots(self._repository), self.ground.root / RECORD
        known = None if found is not None else at(self.ground.place, read_model, record, Made)
        if known is not None:
            fix = f"mount it; or, to begin anew, remove {record}"
            raise StoreNotMounted(known.repository, "its restic repository is gone", fix)
        return found

    def arranged(self) -> dict[str, Copy]:
        """The copies by the names of their points."""
        return cascade.arranged(self.ground, self._copies(self._snapshots() or []))

    def _copies(self, snapshots: list[Snapshot]) -> list[Copy]:
        copies = []
        for snapshot in snapshots:
            night = next((tag.removeprefix(NIGHT) for tag in snapshot.tags if tag.startswith(NIGHT)), None)
            if POINT in snapshot.tags and night is not None:
                copies.append(Copy(snapshot.id, night, snapshot.time, self._manifests.of(snapshot)))
        return copies

    def _prove(self, made: restic.Made, night: NightManifest) -> None:
        """IntegrityError unless the snapshot has as many files as the night, and its listing and facts."""
        if made.files != night.files + len((LISTING, FACTS, MANIFEST)):
            expected = f"{night.files} files of night {night.id}"
            raise IntegrityError(f"snapshot {made.id} of {self.ground.client}", expected, f"{made.files - 3}")
        with TemporaryDirectory(prefix=".proof-", dir=self.ground.store.root) as folder:
            names = [f"/{name}" for name in (LISTING, FACTS, MANIFEST)]
            restic.restore(self._repository, made.id, Path(folder), only=names, deadline_s=QUICK_S)
            verify_night(Path(folder), night)

    def _too_long(self, folder: Path) -> tuple[str, ...]:
        """A warning when restic could not write a file again because of its length of path."""
        prefix = len(str(self.ground.store.opened(self.ground.client) / "monthly.99" / "data")) + 1
        with (folder / LISTING).open("rb") as lines:
            longest = max((len(line) for line in lines), default=0) - len(f"{'0' * 64}  \n")
        if longest + prefix <= LONGEST_PATH:
            return ()
        return (f"a path of {longest} bytes is too long for restic: this night can only be opened in part",)


def _record(path: Path, made: Made) -> None:
    if not path.exists():
        write_model(path, made)


def _snapshot(found: list[Snapshot], stamp: Stamp) -> Snapshot | None:
    """The one that is stamped; what restic calls a new one may be the beginning of its id."""
    return next((snapshot for snapshot in found if snapshot.id.startswith(stamp.key)), None)


def _is_due(tag: str, today: date) -> bool:
    return tag.startswith(TRASH) and tag.removeprefix(TRASH) <= today.isoformat()
