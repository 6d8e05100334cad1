"""Configurations of network and SAN devices: fetched, kept when they differ, shown without their secrets."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

from tasks import places
from tasks.drivers import device as device_driver
from tasks.drivers.device import Configuration
from tasks.drivers.digest import record
from tasks.drivers.store import discard, publish, write_model
from tasks.errors import NothingToRecover
from tasks.model.device import PROFILES, DeviceProfile, changes, settled
from tasks.model.manifest import MANIFEST, DeviceManifest
from tasks.model.names import new_id, slug
from tasks.retryable import retryable

RUNNING, STARTUP = "running.txt", "startup.txt"


@dataclass(frozen=True)
class Kept:
    """A device's configuration in the store, and what differs in it from the one before; None when it is the first."""

    manifest: DeviceManifest
    changes: list[str] | None


@retryable("configuration", "configuration of {device}")
def fetch(device: str) -> Configuration:
    """What the device says of itself now."""
    target, declared = places.device(device)
    return device_driver.fetch(target, PROFILES[declared.type])


@retryable("keep configuration", "keep configuration of {device}", retries=0)
def keep(device: str, found: Configuration) -> Kept:
    """Keep the configuration when it is not the last one; else note that it was seen again. Only root can read it."""
    store, now = places.store(), datetime.now(UTC)
    _, declared = places.device(device)
    profile = PROFILES[declared.type]
    before = next(iter(store.configurations_of(device)), None)
    if before is not None and _same(before[0], found, profile):
        seen = before[1].model_copy(update={"last_seen": now})
        write_model(before[0] / MANIFEST, seen)
        return Kept(seen, [])
    folder = store.device(device)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = folder / f".partial-{new_id(now)}"
    discard(partial, store.trash, partial.name)
    partial.mkdir(mode=0o700)
    texts = {RUNNING: found.running, STARTUP: found.startup}
    for name, text in texts.items():
        if text is not None:
            _write(partial / name, text)
    unsaved = found.startup is not None and settled(found.running, profile) != settled(found.startup, profile)
    manifest = DeviceManifest(
        id=new_id(now),
        device=device,
        address=declared.address,
        type=declared.type,
        first_seen=now,
        last_seen=now,
        unsaved=unsaved,
        files=tuple(record(partial / name, partial) for name, text in texts.items() if text is not None),
    )
    write_model(partial / MANIFEST, manifest)
    publish(partial, folder / manifest.id)
    return Kept(manifest, difference(before[0], folder / manifest.id, profile) if before else None)


def difference(old: Path, new: Path, profile: DeviceProfile) -> list[str]:
    """What differs in the running configurations of two kept ones, without secrets."""
    return changes(_settled(old, RUNNING, profile), _settled(new, RUNNING, profile))


@retryable("show changes", "show changes of {device}", retries=1)
def show(device: str, lines: list[str]) -> None:
    """Show what was changed as an artifact of the run: one per device, whose versions are its history in the UI."""
    text = "\n".join(lines)
    fence = "`" * 3
    while fence in text:
        fence += "`"
    markdown = f"# What was changed on {device}\n\n{fence}diff\n{text}\n{fence}\n"
    came, went = (sum(line.startswith(sign) for line in lines) for sign in "+-")
    key = f"device-{slug(device)}".replace(".", "-")
    create_markdown_artifact(markdown, key=key, description=f"{came} line(s) came, {went} went")


def chosen(device: str, id_: str | None = None) -> tuple[Path, DeviceManifest]:
    """A kept configuration, the newest without an id; NothingToRecover when there is none."""
    places.device(device)
    kept = places.store().configurations_of(device)
    for folder, manifest in kept:
        if id_ in (None, manifest.id):
            return folder, manifest
    known = ", ".join(manifest.id for _, manifest in kept) or "none"
    raise NothingToRecover(f"the configuration of {device}", f"{id_ or 'any'} in the store; kept are: {known}")


def _same(folder: Path, found: Configuration, profile: DeviceProfile) -> bool:
    if (folder / STARTUP).exists() != (found.startup is not None):
        return False
    same = _settled(folder, RUNNING, profile) == settled(found.running, profile)
    return same and (found.startup is None or _settled(folder, STARTUP, profile) == settled(found.startup, profile))


def _settled(folder: Path, name: str, profile: DeviceProfile) -> str:
    return settled((folder / name).read_text("utf-8", "surrogateescape"), profile)


def _write(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)
