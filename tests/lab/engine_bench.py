"""One client between a store and each of the engines: what a contract test needs to do and to see."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.drivers import held_nights, restic_repository
from tasks.drivers.digest import write_listing
from tasks.drivers.engines import Engine, Ground
from tasks.drivers.engines.command import CommandEngine
from tasks.drivers.engines.restic import ResticEngine
from tasks.drivers.engines.rsnapshot import RsnapshotEngine
from tasks.drivers.held_nights import Braked
from tasks.drivers.permanent import MARKER, PermanentPlace
from tasks.drivers.restore_points import held
from tasks.drivers.store import Store
from tasks.errors import Locked
from tasks.model.anomaly import Decision
from tasks.model.inventory import Policy
from tasks.model.inventory_engines import Restic, Vendor
from tasks.model.manifest import NightManifest
from tasks.model.names import new_id
from tests.lab.night_content import Tree
from tests.unit.points_site import STORE_ID, Site
from tests.unit.records import NIGHT

VAULT = Path(__file__).with_name("vault.sh")
PASSWORD, KEY = "swordfish, restic", "open sesame, vault"
CODES = {0: "ok", 4: "warning", 8: "retry", 10: "damaged", 12: "failed", 16: "failed"}
POLICY = Policy(daily=2, weekly=1, monthly=0, least=1, trash_days=0)


def nothing(done: int, total: int) -> None:
    """Progress that nobody wants."""


class Bench(Site):
    """A client's nights (as `Site` makes them), and an engine of a kind between them and what keeps them."""

    def __init__(self, kind: str, folder: Path, policy: Policy = POLICY, *, far: Path | None = None) -> None:
        place = PermanentPlace(far or folder / "far", STORE_ID, "local")
        super().__init__(folder, policy.rules, place)
        place.path.mkdir(exist_ok=True)  # a copy of a bench is one
        (place.path / MARKER).write_text(STORE_ID)
        self.kind, self.folder, self.policy = kind, folder, policy
        self.store = Store(folder / "store")
        self.source = self.store.overnight("web1")
        self.source.parent.mkdir(parents=True, exist_ok=True)
        self.vault = (far or folder) / "vault"
        self.vault.mkdir(exist_ok=True)
        self.repository = self.root / "restic"
        self.secret("password", PASSWORD)
        self.secret("environment", f"# of the vault\nVAULT_HOME={self.vault}\n\nVAULT_KEY={KEY}")

    def secret(self, name: str, text: str) -> Path:
        """A file with a secret."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(f"{text}\n")
        return path

    def engine(self, *, reserve_bytes: int = 0, **changed: object) -> Engine:
        """The engine; `changed` are fields of its section of the inventory."""
        ground = Ground("web1", self.policy, self.store, self.far, reserve_bytes)
        if self.kind == "rsnapshot":
            return RsnapshotEngine(ground)
        if self.kind == "restic":
            section = {"password_file": str(self.folder / "password"), **changed}
            return ResticEngine(ground, Restic.model_validate(section))
        section = {
            "backup": [str(VAULT), "backup", "{client}", "{night}", "{source}"],
            "list": [str(VAULT), "list", "{client}"],
            "restore": [str(VAULT), "restore", "{client}", "{night}", "{target}"],
            "verify": [str(VAULT), "verify", "{client}", "{night}"],
            "forget": [str(VAULT), "forget", "{client}", "{night}"],
            "exit_codes": CODES,
            "environment_file": str(self.folder / "environment"),
            **changed,
        }
        return CommandEngine(ground, Vendor.model_validate(section), "vault")

    def tree(self, number: int, made: Path, **changed: object) -> None:
        """Publish a tree as a night."""
        shutil.rmtree(self.source, ignore_errors=True)
        self.source.mkdir(parents=True)
        made.rename(self.source / "data")
        write_listing(self.source / "data", self.source / "SHA256SUMS", None, None)
        (self.source / "facts.json").write_text("{}")
        self.publish(number, **changed)

    def tree_again(self, number: int) -> None:
        """List and publish anew what lies there: something was added to the night."""
        write_listing(self.source / "data", self.source / "SHA256SUMS", None, None)
        self.publish(number)

    def content(self, number: int, tree: Tree) -> None:
        """Publish the overnight copy of a night; a changed file is a new one, as stage 1 makes it."""
        made = self.folder / "made"
        made.mkdir()
        for name, content in tree.items():
            (made / name).write_bytes(content)
        self.tree(number, made)

    def judged(self) -> Braked:
        """Sync what lies there as the overnight copy, and judge it."""
        self.engine().sync(self.manifest, nothing)
        return held_nights.brake(self.engine())

    def accept(self, night: str | None = None, dry_run: bool = False) -> Decision:
        """An operator's word."""
        return held_nights.accept(self.engine(), night, "a new release", dry_run)

    def reject(self, night: str | None = None, dry_run: bool = False) -> Decision:
        """An operator's word."""
        return held_nights.reject(self.engine(), night, "an attack", dry_run)

    def waiting(self) -> list[int]:
        """The nights that are held."""
        return [number_of(one.night) for one in held(self.root)]

    @property
    def manifest(self) -> NightManifest:
        """Of the overnight copy."""
        found = self.store.night_of("web1")
        assert found is not None
        return found

    def sync_and_rotate(self, engine: Engine | None = None) -> list[str]:
        """Stage 2; which intervals got a new point."""
        engine = engine or self.engine()
        engine.sync(self.manifest, nothing)
        moves = engine.rotate()
        engine.tidy()
        return [move.to.partition(".")[0] for move in moves if move.to and move.to.endswith(".0")]

    def kept(self, number: int, files: dict[str, str] | None = None) -> list[str]:
        """A night and its stage 2."""
        self.night(number, files)
        return self.sync_and_rotate()

    def days(self) -> dict[str, int | None]:
        """The night that each point holds, as the engine lists it."""
        return {name: (found.ended - NIGHT).days for name, found in self.engine().points().items() if found}

    def nights(self) -> dict[str, int]:
        """The night that each point holds by its manifest; each is opened, and sha256sum says that it is whole."""
        found = {}
        for name, manifest in self.engine().points().items():
            assert manifest is not None, name
            with self.opened(name) as folder:
                argv = ["sha256sum", "--check", "--quiet", "--strict", "../SHA256SUMS"]
                subprocess.run(argv, cwd=folder / "data", check=True, capture_output=True)
                assert NightManifest.model_validate_json((folder / "manifest.json").read_text()) == manifest
            found[name] = (manifest.ended - NIGHT).days
        return found

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """The folder of a point."""
        engine = self.engine()
        try:
            yield engine.open(name, nothing)
        finally:
            engine.close(name)

    @property
    def where(self) -> str:
        """The repository, as restic calls it."""
        return str(self.repository)

    @property
    def environment(self) -> dict[str, str]:
        """What restic needs in its environment."""
        return dict(os.environ)

    def argv(self, *words: str) -> list[str]:
        """A command line of restic's own."""
        return ["restic", "--repo", self.where, "--password-file", str(self.folder / "password"), *words]

    def restic(self, *words: str, check: bool = True) -> str:
        """What restic itself says of the repository."""
        argv = self.argv(*words)
        return subprocess.run(argv, check=check, capture_output=True, text=True, env=self.environment).stdout

    @property
    def locks(self) -> set[str]:
        """The locks in the repository."""
        return set(self.restic("list", "locks", "--no-lock").split())

    @contextmanager
    def other_restic(self, host: str | None = None) -> Iterator[int]:
        """Another restic works on the repository meanwhile, on a `host`, and is killed then; its process number."""
        before = self.locks
        argv = self.argv("backup", "--stdin")
        if host is not None:
            argv = ["unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh", *argv]
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdin=pipe, stdout=subprocess.DEVNULL, env=self.environment) as other:
            while self.locks <= before:
                time.sleep(0.01)
            try:
                yield other.pid
            finally:
                other.kill()

    def paths_in(self, pack: str) -> set[str]:
        """The paths of which a pack holds something."""
        return {row["path"] for row in json.loads(self.restic("find", "--json", "--pack", pack)) or () if "path" in row}

    def damage(self) -> None:
        """Change some bytes in the middle of the largest thing that is kept."""
        below = {"rsnapshot": self.root, "restic": self.repository / "data", "command": self.vault}[self.kind]
        files = sorted((path for path in below.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
        # A pack of restic's may hold several files; one of this file alone hits nothing else.
        largest = next(path for path in files if self.kind != "restic" or self.paths_in(path.name) == {"/data/noise"})
        flip(largest, largest.stat().st_size // 2)

    def damage_file(self, name: str) -> None:
        """Change some bytes of a file, where the newest point that has it keeps them."""
        if self.kind == "rsnapshot":
            newest = next(path for path in sorted(self.root.glob(f"daily.*/data/{name}")))
            flip(newest, newest.stat().st_size // 2)
        elif self.kind == "restic":
            flip(*self.stored_at(f"/data/{name}"))
        else:
            newest = max(self.vault.glob("web1/*.tar"))
            flip(newest, newest.stat().st_size // 2)

    def stored_at(self, path: str) -> tuple[Path, int]:
        """The pack, and the place in it, where restic has the beginning of a file."""
        for name in self.restic("list", "packs").split():
            pack = self.repository / "data" / name[:2] / name
            rows = json.loads(self.restic("find", "--json", "--pack", name)) or ()
            blobs = {row["id"] for row in rows if row.get("path") == path}
            for index in self.restic("list", "index").split() if blobs else ():
                for known in json.loads(self.restic("cat", "index", index))["packs"]:
                    for blob in known["blobs"]:
                        if known["id"] == name and blob["id"] in blobs:
                            return pack, blob["offset"] + blob["length"] // 2
        raise LookupError(path)


def flip(path: Path, offset: int) -> None:
    """Change some bytes of a file."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"not what it was")


def id_of(number: int) -> str:
    """The id of a night."""
    return new_id(NIGHT + timedelta(days=number))


def number_of(night: str) -> int:
    return next(number for number in range(400) if id_of(number) == night)


def sync_in_child(kind: str, folder: str) -> None:
    """Stage 2's sync of what lies there, in a process that is killed while it works."""
    bench = Bench(kind, Path(folder))
    os.setsid()
    bench.engine().sync(bench.manifest, nothing)


def lock_that_comes_late_stays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restic begins to work after the locks that are dead were told, and before they are removed."""
    bench.night(2)
    bench.engine().sync(bench.manifest, nothing)
    with bench.other_restic():
        pass
    (dead,) = bench.locks
    real = restic_repository._is_dead
    with ExitStack() as late:
        others = list[int]()

        def told(held: Mapping[str, Any]) -> bool:
            found = real(held)
            if not others:
                others.append(late.enter_context(bench.other_restic()))
            return found

        monkeypatch.setattr(restic_repository, "_is_dead", told)
        with pytest.raises(Locked) as caught:
            bench.engine().rotate()
        assert f" {others[0]} " in str(caught.value)
        assert len(bench.locks) == 1
        assert dead not in bench.locks
    assert bench.sync_and_rotate() == ["daily"]
    assert not bench.locks
