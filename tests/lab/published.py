"""What was published: outcomes of a run; images, proven by dd and sha256sum, and the manifest of one not by a flow."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from tasks.drivers.digest import record
from tasks.model.image_taken import Taken
from tasks.model.manifest import DiskRecord, FileRecord, ImageManifest, VmParts

CHUNK = 4 << 20


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], str]:
    """What a run printed as JSON: client (or device) and stage → outcome."""
    return {(row["client"], row["stage"]): row["outcome"] for row in json.loads(done.stdout)}


def manifest_of(taken: Taken, folder: Path, uuid: str, parts: VmParts | None = None) -> ImageManifest:
    """The manifest of an image in `folder`."""
    parts = parts or VmParts()
    now = datetime.now(UTC)
    disks = [
        DiskRecord(
            target=disk.target,
            file=disk.file,
            format="raw",
            source=disk.source,
            source_format=disk.source_format,
            virtual_size_bytes=disk.virtual_size_bytes,
        )
        for disk in taken.disks
    ]
    files = [
        *(record(folder / f"{disk.file}.chunks", folder) for disk in disks),
        *(record(folder / path, folder) for path in parts.all_files),
        *(FileRecord(path=d.file, size_bytes=d.virtual_size_bytes, chunks=f"{d.file}.chunks") for d in disks),
    ]
    common = {"kvm_host": "kvm1", "started": now, "ended": now, "instant": now, "method_reason": "test"}
    common |= {"consistency": "crash", "consistency_reason": "", "window_s": 0, "copy_s": 0, "frozen_s": 0}
    return ImageManifest.model_validate(
        {
            **common,
            "id": taken.id,
            "vm": "test",
            "uuid": uuid,
            "method": taken.method,
            "checkpoint": taken.checkpoint,
            "parent": taken.parent,
            "disks": disks,
            "files": files,
            "parts": parts,
        }
    )


def listed_chunks(folder: Path, name: str) -> dict[int, str]:
    """The listing of a file's chunks: number → sha256."""
    lines = (folder / f"{name}.chunks").read_text().splitlines()
    return {int(line.split()[1]): line.split()[0] for line in lines}


def _sha256sum(script: str, *words: str) -> str:
    done = subprocess.run(["sh", "-c", f"{script} | sha256sum", "sh", *words], capture_output=True, check=True)
    return done.stdout.split()[0].decode()


def _chunk(folder: Path, name: str, number: int) -> str:
    return _sha256sum('dd if="$1" bs=4M skip="$2" count=1 status=none', str(folder / name), str(number))


def assert_listed_chunks(folder: Path, name: str) -> None:
    """dd and sha256sum find each listed chunk as listed, and qemu-img no data in any other."""
    listed = listed_chunks(folder, name)
    for number, digest in listed.items():
        assert _chunk(folder, name, number) == digest, number
    argv = ["qemu-img", "map", "-f", "raw", "--output=json", str(folder / name)]
    mapped = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    data = [(row["start"], row["start"] + row["length"]) for row in mapped if row["data"]]
    holding = {number for begin, end in data for number in range(begin // CHUNK, (end - 1) // CHUNK + 1)}
    assert holding <= set(listed)


def assert_chunks(folder: Path, name: str) -> None:
    """dd and sha256sum find each chunk as listed, and zeros in all others."""
    listed, size = listed_chunks(folder, name), (folder / name).stat().st_size
    for number in range(-(-size // CHUNK)):
        zeros = _sha256sum('head -c "$1" /dev/zero', str(min(CHUNK, size - number * CHUNK)))
        assert _chunk(folder, name, number) == listed.get(number, zeros), number
