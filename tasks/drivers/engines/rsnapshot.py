"""The default engine: hard-linked folders in the permanent store, which any program can read."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks.drivers import changed, night_changes, permanent, restore_points, rsnapshot
from tasks.drivers.engines import Advance, Ground
from tasks.drivers.point_check import Checked, check_points
from tasks.drivers.renewal import Renewal
from tasks.drivers.store import keeps_nanoseconds
from tasks.errors import NothingToRecover
from tasks.model.anomaly import Change
from tasks.model.manifest import NightManifest
from tasks.model.names import slug
from tasks.model.retention import SYNC, Move, Point


@dataclass(frozen=True)
class RsnapshotEngine:
    """Points are folders below the client's root; `.sync` is the stamped sync."""

    ground: Ground
    on_permanent: bool = True
    forgets: bool = True

    def where(self, point: str) -> str:
        """As the contract says."""
        return str(self.ground.root / point)

    def points(self) -> dict[str, NightManifest | None]:
        """As the contract says."""
        return permanent.at(self.ground.place, restore_points.points, self.ground.root)

    def folder(self, point: str) -> Path:
        """As the contract says."""
        return self.ground.root / point

    def read(self, point: str, path: str) -> None:
        """All points are folders."""

    def retained(self) -> list[Point]:
        """As the contract says."""
        return permanent.at(self.ground.place, restore_points.retained, self.ground.root)

    def sync(self, night: NightManifest, advance: Advance) -> tuple[str, ...]:
        """Made of the newest point where stage 1 has found what changed since."""
        at, store, client = self.ground, self.ground.store, self.ground.client
        whole_seconds = not permanent.at(at.place, keeps_nanoseconds, at.place.path)
        options = rsnapshot.rsync_options(fake_super=night.fake_super, whole_seconds=whole_seconds)
        config, found = self._config(options), changed.read(store.changed(client))
        renewal = None
        if found is not None and found.night == night.id:
            renewal = Renewal(found, options, config.with_suffix(".list"), config.with_suffix(".renewals"))
        deadline_s = at.policy.transfer_deadline_s
        rsnapshot.sync(at.place, config, store.overnight(client), at.root, deadline_s, renewal)
        return ()

    def changes(self) -> tuple[Change | None, tuple[str, ...]]:
        """As the contract says; the older versions are opened where they lie."""
        near = self.ground.store.overnight(self.ground.client)
        return permanent.at(self.ground.place, _changes, self.ground.root, near)

    def planned(self, sync: str) -> list[Move]:
        """As the contract says."""
        at, now = self.ground, datetime.now(UTC)
        return permanent.at(at.place, restore_points.planned, at.root, at.place.path, at.policy.rules, now, sync)

    def rotate(self, sync: str = SYNC) -> list[Move]:
        """As the contract says."""
        policy = self.ground.policy
        return restore_points.rotate(self.ground.place, self.ground.root, policy.rules, policy.trash_days, sync)

    def tidy(self) -> None:
        """As the contract says."""
        restore_points.tidy(self.ground.place, self.ground.root)

    def open(self, point: str, advance: Advance) -> Path:
        """The point itself."""
        if self.points().get(point) is None:
            raise NothingToRecover(f"client {self.ground.client}", f"there is no point {self.where(point)}")
        return self.ground.root / point

    def close(self, point: str) -> None:
        """As the contract says."""

    def verify(self, percent: float) -> list[Checked]:
        """Each inode is read once, and healed by a good copy where there is one."""
        good = self.ground.store.overnight(self.ground.client) / "data"
        seed = int(datetime.now(UTC).timestamp())
        return permanent.at(self.ground.place, check_points, self.ground.root, good, percent, seed)

    def _config(self, options: Sequence[str]) -> Path:
        store, client = self.ground.store, self.ground.client
        folder = store.root / "rsnapshot"
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / f"{slug(client)}.conf"
        # GBS's own lock keeps two runs apart; a pid file of rsnapshot's that a killed run left would make it skip.
        lock = folder / f"{slug(client)}.pid"
        lock.unlink(missing_ok=True)
        retain = self.ground.policy.rules.retain
        config.write_text(rsnapshot.render_config(store.overnight(client), self.ground.root, lock, retain, options))
        return config


def _changes(root: Path, near: Path) -> tuple[Change | None, tuple[str, ...]]:
    stamp = restore_points.stamp_of(root / SYNC)

    def compared(name: str, old: NightManifest) -> Change:
        return night_changes.compare(night_changes.Folder(root / name), old, near, stamp)

    return night_changes.against_newest(restore_points.points(root), compared)
