"""A vendor's backup application as an engine: its own commands, with its exit statuses mapped by a table.

A night is handed over under its id. What the application has is what its `list` prints; what makes a listed night a
point is its manifest in the client's folder of the permanent store (`.nights/<id>.json`), written by a rotation. A
night can only be had back whole, so the listings of the newest ones lie there, too, for the next to be compared with.
"""

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tasks.drivers import process
from tasks.drivers.digest import verify_listing
from tasks.drivers.engines import Advance, Ground, cascade
from tasks.drivers.engines.cascade import Copy, PointsByAge
from tasks.drivers.night_changes import compare
from tasks.drivers.permanent import at
from tasks.drivers.point_check import Checked, check_points
from tasks.drivers.secret_file import read_environment, struck_out
from tasks.drivers.store import read_model, verify_night, write_model
from tasks.errors import CommandFailed, IntegrityError, NotNow, StoreError
from tasks.model.anomaly import Change
from tasks.model.inventory_engines import Vendor, filled
from tasks.model.manifest import LISTING, MANIFEST, NightManifest
from tasks.model.names import one_line, slug, time_of_id
from tasks.model.retention import SYNC, Move
from tasks.model.verify_choice import WHOLE

NIGHTS = ".nights"
TRASH = "trash-"
LISTINGS = 3
"""So many are kept: should the newest be damaged, the one before it will do."""
QUICK_S = 600
_ID = re.compile(r"\b\d{8}T\d{6}Z\b")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """A point of which only its listing is at hand; see `night_changes.Before`."""

    path: Path

    def listing(self) -> Path:
        """As the protocol says."""
        return self.path

    def files(self, paths: Sequence[bytes]) -> None:
        """None is at hand."""


@dataclass(frozen=True)
class CommandEngine(PointsByAge):
    """Points are the nights that the application lists and whose manifests are kept; they are named by their age."""

    ground: Ground
    declared: Vendor
    called: str
    on_permanent: bool = True

    @property
    def forgets(self) -> bool:
        """As the contract says."""
        return bool(self.declared.forget)

    def where(self, point: str) -> str:
        """As the contract says."""
        return f"{self.called}, {self.ground.client} {point}"

    def sync(self, night: NightManifest, advance: Advance) -> tuple[str, ...]:
        """Call `backup`; proven is that it said so, and that `list` names the night then."""
        cascade.make_root(self.ground)
        cascade.unstamp(self.ground)
        source = self.ground.store.overnight(self.ground.client)
        known = [self._records().get(night.id), *(one.stamp.night for one in cascade.aside(self.ground) if one.stamp)]
        if night in known and night.id in self._listed():
            cascade.stamp(self.ground, night.id, night, source / LISTING)
            return ()
        deadline_s = self.ground.policy.transfer_deadline_s
        warnings = self._run("backup", deadline_s, source=str(source), night=night.id)[1]
        if night.id not in self._listed():
            raise IntegrityError(
                f"backup of {self.ground.client} by {self.called}", f"a listing with {night.id}", "none"
            )
        cascade.stamp(self.ground, night.id, night, source / LISTING)
        return warnings

    def compared(self, copy: Copy, old: NightManifest, night: NightManifest) -> Change:
        """By the listings: the older files could only be had back all together."""
        before = Listed(self.ground.root / NIGHTS / f"{copy.night}.{LISTING}")
        overnight = self.ground.store.overnight(self.ground.client)
        return at(self.ground.place, compare, before, old, overnight, night)

    def rotate(self, sync: str = SYNC) -> list[Move]:
        """Write the manifest; without `forget` nothing is given up: what is kept is the vendor's affair."""
        stamp, there = cascade.stamped(self.ground, sync), self._listed()
        points = self._arranged(there)
        moves = self.moves(points, stamp, sync)
        if moves:
            if stamp.key not in there:
                raise IntegrityError(f"{self.called} of {self.ground.client}", f"a listing with {stamp.key}", "none")
            at(self.ground.place, _keep, self.ground.root / NIGHTS, stamp.night, self.ground.root / sync / LISTING)
            due = datetime.now(UTC) + timedelta(days=self.ground.policy.trash_days)
            for name in cascade.given_up(moves):
                at(self.ground.place, _give_up, self.ground.root / NIGHTS, points[name].night, f"{due:%Y-%m-%d}")
        cascade.unstamp(self.ground, sync)
        return moves

    def forget(self, keys: Collection[str]) -> None:
        """Call `forget` for each; without that the vendor does when it likes."""
        due = at(self.ground.place, _due, self.ground.root / NIGHTS, f"{datetime.now(UTC):%Y-%m-%d}")
        nights = (keys - self._records().keys() | due.keys()) if self.forgets else set[str]()
        for night in sorted(nights & self._listed() if nights else nights):
            self._run("forget", self.ground.policy.transfer_deadline_s, night=night)
        for record in due.values():
            at(self.ground.place, Path.unlink, record, missing_ok=True)

    def read(self, point: str, path: str) -> None:
        """A night is restored as a whole or not at all."""

    def open(self, point: str, advance: Advance) -> Path:
        """Call `restore`."""
        found = self.arranged().get(point)
        deadline_s = self.ground.policy.transfer_deadline_s

        def bring(folder: Path, on_wait: process.Watch) -> None:
            assert found is not None  # noqa: S101 - `scratch` has asked
            folder.mkdir(parents=True)
            for warning in self._run("restore", deadline_s, on_wait, night=found.night, target=str(folder))[1]:
                log.warning("%s", warning)

        return cascade.scratch(self.ground, point, found, advance, bring)

    def verify(self, percent: float) -> list[Checked]:
        """Call `verify` for each night; without it each is restored in turn and `percent` of its files are read.

        A night that we did not let go of and that is not listed any more is a damaged one.
        """
        found = [self._verified(name, copy, percent) for name, copy in self.arranged().items()]
        lost = self._records().keys() - self._listed() if self.forgets else set()
        gone = f"{self.called} does not list it any more"
        return [*found, *(Checked(night, night, 0, 0, (gone,), ()) for night in sorted(lost))]

    def _verified(self, name: str, copy: Copy, percent: float) -> Checked:
        """What was found; a damaged night that is still the overnight copy is backed up again."""
        found = self._found(name, copy, percent)
        if not found.damaged or copy.manifest is None or not self._is_overnight(copy.manifest):
            return found
        source = str(self.ground.store.overnight(self.ground.client))
        self._run("backup", self.ground.policy.transfer_deadline_s, source=source, night=copy.night)
        again = self._found(name, copy, percent)
        return again if again.damaged else replace(again, damaged=found.damaged, healed=found.damaged)

    def _is_overnight(self, night: NightManifest) -> bool:
        """Whether the overnight copy is that night, and every file of it what it was."""
        folder = self.ground.store.overnight(self.ground.client)
        if self.ground.store.night_of(self.ground.client) != night:
            return False
        try:
            verify_night(folder, night)
            verify_listing(folder / "data", folder / LISTING, lambda done: None)
        except (IntegrityError, StoreError) as exc:
            log.warning("%s: the overnight copy heals nothing: %s", self.ground.client, exc)
            return False
        return True

    def _found(self, name: str, copy: Copy, percent: float) -> Checked:
        if copy.manifest is None:
            return Checked(name, copy.night, 0, 0, (f"{MANIFEST}: cannot be read",), ())
        try:
            if self.declared.verify:
                return self._asked(name, copy.manifest, percent)
            folder = self.open(name, lambda done, total: None)
        except IntegrityError as exc:  # any other failure is no word about what is kept
            return Checked(name, copy.night, 0, 0, (one_line(str(exc)),), ())
        try:
            rows = check_points(folder.parent, None, percent, int(datetime.now(UTC).timestamp()))
            return next(row for row in rows if row.point == name)
        finally:
            self.close(name)

    def _asked(self, name: str, night: NightManifest, percent: float) -> Checked:
        """What the application says it has read: the whole night, unless its command is told a part."""
        said = self._run("verify", self.ground.policy.transfer_deadline_s, night=night.id, percent=f"{percent:g}")[0]
        if said.strip():
            log.info("%s of %s: %s", self.called, night.id, one_line(said.strip().splitlines()[-1]))
        part = min(percent, WHOLE) / WHOLE if any("{percent}" in word for word in self.declared.verify) else 1
        files = night.files if part == 1 else 0
        return Checked(name, night.id, files, int(part * night.size_bytes), (), ())

    def arranged(self) -> dict[str, Copy]:
        """The copies by the names of their points."""
        return self._arranged(self._listed())

    def _arranged(self, there: set[str]) -> dict[str, Copy]:
        copies = [
            Copy(night, night, found.ended if found else time_of_id(night), found)
            for night, found in self._records().items()
            if night in there
        ]
        return cascade.arranged(self.ground, copies)

    def _records(self) -> dict[str, NightManifest | None]:
        return at(self.ground.place, _records, self.ground.root / NIGHTS)

    def _listed(self) -> set[str]:
        return set(_ID.findall(self._run("list", QUICK_S)[0]))

    def _run(
        self, verb: str, deadline_s: float, on_wait: process.Watch | None = None, **values: str
    ) -> tuple[str, tuple[str, ...]]:
        """What the command printed, and warnings; NotNow, IntegrityError or CommandFailed by the table of statuses."""
        file = self.declared.environment_file
        secrets = read_environment(Path(file) if file else None)
        argv = filled(getattr(self.declared, verb), client=slug(self.ground.client), **values)
        called = f"{self.called} {verb} of {self.ground.client}"
        finished = process.run(
            argv, deadline_s=deadline_s, env=secrets, accept=lambda status: True, watch=on_wait, name=called
        )
        said = struck_out(finished.stderr or finished.text[-process.TAIL_BYTES :].strip(), secrets)
        match self.declared.meaning(finished.status):
            case "ok":
                return finished.text, ()
            case "warning":
                return finished.text, (f"{called} ended with status {finished.status}: {one_line(said)}",)
            case "retry":
                raise NotNow(called, finished.status, said)
            case "damaged":
                raise IntegrityError(called, "a night as it was", f"status {finished.status}: {one_line(said)}")
            case "failed":
                raise CommandFailed(called, finished.status, said)


def _records(folder: Path) -> dict[str, NightManifest | None]:
    """The manifests of the nights that were taken in; None for one that cannot be read."""
    found: dict[str, NightManifest | None] = {}
    for path in folder.glob("[0-9]*.json"):
        try:
            found[path.stem] = read_model(path, NightManifest)
        except IntegrityError:
            found[path.stem] = None
    return found


def _keep(folder: Path, night: NightManifest, listing: Path) -> None:
    """The listing first: a night that is a point can be compared with."""
    folder.mkdir(exist_ok=True)
    if listing.exists():
        listing.rename(folder / f"{night.id}.{LISTING}")
    write_model(folder / f"{night.id}.json", night)
    for old in sorted(folder.glob(f"*.{LISTING}"))[:-LISTINGS]:
        old.unlink()


def _give_up(folder: Path, night: str, due: str) -> None:
    (folder / f"{night}.json").rename(folder / f"{TRASH}{due}-{night}.json")


def _due(folder: Path, today: str) -> dict[str, Path]:
    """The nights that were given up and whose day has come, and where that stands."""
    found = {}
    for path in folder.glob(f"{TRASH}*.json"):
        if path.stem.removeprefix(TRASH)[:10] <= today:
            found[path.stem.removeprefix(TRASH)[11:]] = path
    return found
