"""A client's nights and restore points in a folder, made by rsnapshot itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

from tasks.drivers import restore_points, rsnapshot
from tasks.drivers.digest import opened, sha256_file, walk, write_listing
from tasks.drivers.permanent import MARKER, PermanentPlace
from tasks.drivers.restore_points import points
from tasks.drivers.rsnapshot import render_config, rsync_options
from tasks.drivers.store import discard, write_model
from tasks.model.retention import Retain, Rules
from tests.unit.records import NIGHT, night_manifest

RULES = Rules((Retain("daily", 3), Retain("weekly", 2)), 1)
STORE_ID = "far-1"


class Site:
    """One client's overnight copy below `folder`, its root in the permanent store, and what lies between them."""

    def __init__(self, folder: Path, rules: Rules = RULES, far: PermanentPlace | None = None) -> None:
        self.far = far or PermanentPlace(folder / "far", STORE_ID, "local")
        self.source, self.root, self.rules = folder / "over night's #1", self.far.path / "web1", rules
        self.config, self.lock = folder / "web1.conf", folder / "web1.pid"
        self.config.write_text(render_config(self.source, self.root, self.lock, rules.retain, rsync_options()))
        if far is None:
            self.root.mkdir(parents=True)
            (self.far.path / MARKER).write_text(STORE_ID)

    def night(self, number: int, files: dict[str, str] | None = None, *, linked: bool = True) -> None:
        """Publish the overnight copy of a night as stage 1 does: a new tree, what is unchanged hard-linked."""
        old, new = self.source.with_name("old"), self.source.with_name("new")
        if self.source.exists():
            self.source.rename(old)
        (new / "data").mkdir(parents=True)
        for name, text in (files or {"same": "always", "number": str(number)}).items():
            before = old / "data" / name
            if linked and before.exists() and before.read_text() == text:
                os.link(before, new / "data" / name)
            else:
                (new / "data" / name).write_text(text)
        write_listing(new / "data", new / "SHA256SUMS", None, None)
        (new / "facts.json").write_text("{}")
        new.rename(self.source)
        self.publish(number)
        discard(old, self.source.with_name("trash"), "old")

    def publish(self, number: int, **changed: object) -> None:
        """Write the manifest of what lies there as the overnight copy."""
        ended = NIGHT + timedelta(days=number)
        sums, facts = sha256_file(self.source / "SHA256SUMS"), sha256_file(self.source / "facts.json")
        with opened(self.source / "data") as data:
            files = [entry for entries in walk(data) for entry in entries]
            sizes = [file.size_bytes for file in files if file.size_bytes is not None]
        there = {"files": len(sizes), "size_bytes": sum(sizes), "listing_sha256": sums, "facts_sha256": facts}
        write_model(self.source / "manifest.json", night_manifest(ended, **there, **changed))

    def place(self, name: str, number: int) -> None:
        """Make the restore point of a night without running rsnapshot."""
        self.night(number)
        shutil.copytree(self.source, self.root / name)

    def sync(self) -> None:
        self.lock.unlink(missing_ok=True)  # as stage 2 does: a run that was killed left it
        rsnapshot.sync(self.far, self.config, self.source, self.root, 60)

    def rotate(self) -> list[str]:
        """Rotate; which intervals got a new point. What is given up goes at once."""
        moves = restore_points.rotate(self.far, self.root, self.rules, 0)
        restore_points.tidy(self.far, self.root)
        return [move.to.partition(".")[0] for move in moves if move.to and move.to.endswith(".0")]

    def keep(self, number: int) -> list[str]:
        self.night(number)
        self.sync()
        return self.rotate()

    def days(self) -> dict[str, int | None]:
        """The night that each point holds, by its manifest, which must agree with its data."""
        found: dict[str, int | None] = {}
        for name, manifest in points(self.root).items():
            found[name] = (manifest.ended - NIGHT).days if manifest else None
            argv = ["sha256sum", "--check", "--quiet", "--strict", "../SHA256SUMS"]
            subprocess.run(argv, cwd=self.root / name / "data", check=True, capture_output=True)
        return found
