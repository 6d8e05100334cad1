"""NBD: copy what QEMU serves of a disk into a raw file, in a child process that can be killed."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.drivers import process
from tasks.errors import CommandFailed

OnProgress = Callable[[int, int | None], None]
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def pull(
    socket: Path,
    export: str,
    target: Path,
    size_bytes: int,
    *,
    bitmap: str | None,
    chunks: Path,
    parent_chunks: Path | None,
    deadline_s: float,
    bytes_per_s: int | None = None,
    on_progress: OnProgress | None = None,
    watch: Callable[[], None] | None = None,
) -> int:
    """Copy the allocated data of an export into the empty file `target`, or what `bitmap` calls dirty into a clone.

    `target` exists; it is flushed to the disk, and so is `chunks`, the listing of its chunks (of a clone, made from its
    parent's). At most `bytes_per_s` travel; the bytes that did are returned. CommandFailed when the connection breaks
    or the export has another size; `watch` as `process.run`.
    """
    request = {
        "socket": str(socket),
        "export": export,
        "bitmap": f"qemu:dirty-bitmap:{bitmap}" if bitmap else None,
        "target": str(target),
        "size_bytes": size_bytes,
        "chunks": str(chunks),
        "parent_chunks": str(parent_chunks) if parent_chunks else None,
        "bytes_per_s": bytes_per_s,
    }
    lines = _Lines(on_progress)
    called = f"NBD copy of {export}"
    finished = process.run(
        [sys.executable, "-m", "tasks.drivers.nbd_worker"],
        deadline_s=deadline_s,
        stdin=json.dumps(request).encode(),
        env={"PYTHONPATH": os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))},
        accept=lambda status: True,
        on_output=lines.take,
        watch=watch,
        name=called,
    )
    if finished.status != 0 or lines.answer is None:
        raise CommandFailed(called, finished.status, lines.failure or finished.stderr)
    return int(lines.answer["bytes_copied"])


class _Lines:
    """The worker's output: JSON lines of progress, then one answer or one failure."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress, self._rest = on_progress, b""
        self.answer: dict[str, Any] | None = None
        self.failure = ""

    def take(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            match json.loads(line):
                case {"progress": [int(done), int(total)]}:
                    if self._on_progress is not None:
                        self._on_progress(done, total or None)
                case {"answer": dict(answer)}:
                    self.answer = answer
                case {"failure": str(words)}:
                    self.failure = words
