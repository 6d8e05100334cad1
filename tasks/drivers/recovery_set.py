"""What the GBS server itself is rebuilt from, gathered into a folder; age(1) seals what is secret for a recovery key.

The keys' secret halves are not here: whoever has both stores and no recovery key opens nothing.
"""

import io
import json
import os
import sqlite3
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.drivers import process
from tasks.drivers.digest import record
from tasks.drivers.store import discard, listed_model, publish, read_model, write_model
from tasks.drivers.tool_versions import tool_versions
from tasks.errors import CommandFailed, StoreError
from tasks.model.inventory import Inventory
from tasks.model.manifest import MANIFEST, ServerManifest
from tasks.model.names import new_id

INVENTORY, BLOCKS, KEYS, DATABASE, READ_ME = "inventory.yaml", "blocks.json", "keys.tar", "prefect", "RECOVER.txt"
SEALED = ".age"
NO_KEY = (
    "no recovery key: its ssh keys, its secrets and Prefect's database are in no recovery set; "
    "make one with age-keygen and declare it in server.recovery_keys"
)
DUMP_DEADLINE_S = 3600
_READ_ME = """How to rebuild this GBS server, with plain tools

1. A fresh machine with GBS installed. Look at what is here: sha256sum of each file is in manifest.json.
2. Open what is sealed with the recovery key that is kept elsewhere, and put the keys where they were:
     age --decrypt -i RECOVERY-KEY-FILE keys.tar.age | tar --extract --directory / --preserve-permissions
3. Prefect's database, for its history, while no Prefect server runs (without it, step 4 is enough):
     age --decrypt -i RECOVERY-KEY-FILE prefect.db.age > ~/.prefect/prefect.db        (SQLite)
     age --decrypt -i RECOVERY-KEY-FILE prefect.dump.age > prefect.dump               (PostgreSQL: pg_restore)
4. Make the store that inventory.yaml names, and its marker: touch STORE/.gbs-near-store
   cp inventory.yaml /etc/gbs/inventory.yaml; prefect server start; gbs apply; gbs deploy; gbs check
   blocks.json has the blocks as Prefect had them, for what was changed there by hand.
5. Images come back from _images of the permanent store: cp --recursive --sparse=always to images of the store.
6. A VM comes back without all this: by its script in _runbooks of the permanent store, with plain tools.
"""


@dataclass(frozen=True)
class PrefectServer:
    """What a run knows of its Prefect server: the blocks, and the SQLite file that may be the database."""

    blocks: Any
    file: Path | None
    run: str
    """The id of the run, which the right database knows."""


def make(
    sets: Path, trash: Path, declared: Inventory, inventory_file: Path, prefect: PrefectServer, now: datetime
) -> ServerManifest:
    """Gather a recovery set below `sets` and publish it; those beyond the wanted number go.

    What could not be had is among the manifest's warnings. Raises StoreError when the inventory
    cannot be read.
    """
    if (there := read_model(sets / new_id(now) / MANIFEST, ServerManifest)) is not None:
        return there  # two within a second
    sets.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = sets / f".partial-{new_id(now)}"
    for left in sets.glob(".partial-*"):
        discard(left, trash, left.name)
    partial.mkdir(mode=0o700)
    _write(partial / INVENTORY, _read(inventory_file))
    _write(partial / BLOCKS, json.dumps(prefect.blocks, indent=1, sort_keys=True, default=str).encode() + b"\n")
    _write(partial / READ_ME, _READ_ME.encode())
    keys, warnings = declared.server.recovery_keys, list[str]()
    if keys:
        secret, warnings = _tar(_secret_files(declared))
        _seal(partial / f"{KEYS}{SEALED}", keys, stdin=secret)
        warnings += _database(partial, declared.server.prefect_database, prefect, keys)
    else:
        warnings.append(NO_KEY)
    manifest = ServerManifest(
        id=new_id(now),
        site=declared.site,
        made=now,
        sealed_for=keys,
        warnings=tuple(warnings),
        files=tuple(record(path, partial) for path in sorted(partial.iterdir())),
        tools=tool_versions("prefect", "age"),
    )
    write_model(partial / MANIFEST, manifest)
    publish(partial, sets / manifest.id)
    for old in beyond(sets, declared.server.keep):
        discard(old, trash, old.name)
    return manifest


def beyond(sets: Path, count: int) -> list[Path]:
    """The recovery sets below a folder that go: all but the newest so many, and the newest that lacks nothing."""
    found = [
        (path.parent, kept)
        for path in sorted(sets.glob(f"[!.]*/{MANIFEST}"), reverse=True)
        if (kept := listed_model(path, ServerManifest)) is not None
    ]
    whole = next((folder for folder, kept in found if not kept.warnings), None)
    return [folder for folder, _ in found[count:] if folder != whole]


def _secret_files(declared: Inventory) -> list[Path]:
    """Every file of this server that the inventory names, and what is wanted besides."""
    return sorted({*_named(declared.model_dump()), *map(Path, declared.server.also)})


def _named(section: Any) -> Iterator[Path]:
    if isinstance(section, Mapping):
        for name, value in section.items():
            if name.endswith("_file") and value is not None:
                yield Path(value)
            yield from _named(value)
    elif isinstance(section, list | tuple):
        for value in section:
            yield from _named(value)


def _tar(paths: Sequence[Path]) -> tuple[bytes, list[str]]:
    """The files with their full paths, in memory (nothing secret is written unsealed); what could not be read.

    Where a name is a link, both that and the file are taken.
    """
    out, unread = io.BytesIO(), list[str]()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path in dict.fromkeys(found for wanted in paths for found in _below(wanted.absolute())):
            try:
                _add(tar, path)
            except OSError as exc:
                unread.append(f"{path} is not in the recovery set: {exc.strerror or exc}")
    return out.getvalue(), unread


def _below(path: Path) -> Iterator[Path]:
    yield path
    if path.is_symlink():
        path = path.resolve()
        yield path
    if path.is_dir():
        yield from sorted(path.rglob("*"))


def _add(tar: tarfile.TarFile, path: Path) -> None:
    """A file is read whole first: one that gets shorter meanwhile must not cost those behind it."""
    if not (path.is_symlink() or path.is_dir() or path.is_file()):
        path.lstat()  # which says it, should there be nothing
        raise OSError("it is neither a file nor a folder")
    info = tar.gettarinfo(path)
    if path.is_symlink() or path.is_dir():
        tar.addfile(info)
        return
    content = path.read_bytes()
    info.type, info.linkname, info.size = tarfile.REGTYPE, "", len(content)
    tar.addfile(info, io.BytesIO(content))


def _database(folder: Path, wanted: str | None, prefect: PrefectServer, keys: Sequence[str]) -> list[str]:
    """Prefect's database, sealed; what hindered that."""
    service = wanted is not None and wanted.startswith("service=")
    dump = folder / f"{DATABASE}.{'dump' if service else 'db'}"
    try:
        os.close(os.open(dump, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        if service:
            argv = ["pg_dump", "--format=custom", "--no-password", f"--file={dump}", f"--dbname={wanted}"]
            process.run(argv, deadline_s=DUMP_DEADLINE_S)
        else:
            _copy_own(Path(wanted) if wanted else prefect.file, dump, prefect.run)
        _seal(dump.with_name(dump.name + SEALED), keys, source=dump)
    except (StoreError, CommandFailed) as exc:
        fix = "say where it is in server.prefect_database"
        return [f"Prefect's database is not in the recovery set: {exc}; {fix}"]
    finally:
        dump.unlink(missing_ok=True)
    return []


def _copy_own(path: Path | None, target: Path, run: str) -> None:
    """Copy the SQLite file of the server that knows this run; StoreError when it is not that."""
    if path is None or not path.is_file():
        raise StoreError(str(path), "there is no such file" if path else "it is no SQLite file")
    copy_sqlite(path, target)
    try:
        with closing(sqlite3.connect(target)) as copied:
            known = copied.execute("SELECT 1 FROM flow_run WHERE id = ?", (run,)).fetchone()
    except sqlite3.Error:
        known = None
    if known is None:
        raise StoreError(str(path), "it does not know this run, so it is another server's")


def copy_sqlite(path: Path, target: Path) -> None:
    """A copy as of one instant of a database that is in use, into an empty file.

    StoreError unless its own check finds it whole.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60)) as database:
            database.execute("VACUUM INTO ?", (str(target),))
        with closing(sqlite3.connect(target)) as copied:
            (said,) = copied.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.Error as exc:
        raise StoreError(str(path), f"cannot be copied: {exc}") from exc
    if said != "ok":
        raise StoreError(str(path), f"is damaged: {said}")


def _seal(target: Path, keys: Sequence[str], *, stdin: bytes | None = None, source: Path | None = None) -> None:
    recipients = [argument for key in keys for argument in ("--recipient", key)]
    argv = ["age", "--encrypt", *recipients, "--output", str(target), *([str(source)] if source else [])]
    process.run(argv, deadline_s=DUMP_DEADLINE_S, stdin=stdin)
    target.chmod(0o600)


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(handle, "wb") as file:
        file.write(content)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise StoreError(str(path), f"cannot be read for the recovery set: {exc.strerror}") from exc
