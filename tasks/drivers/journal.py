"""The journal of a VM's snapshot window: JSON lines, each fsynced before what it announces is done."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from tasks.drivers.store import sync_folder
from tasks.errors import IntegrityError
from tasks.model.names import slug
from tasks.model.window import OpenWindow, Phase, Record, Step, WindowPlan, open_window_of

_DONE_SUFFIX = ".done.jsonl"
_SUFFIX = ".jsonl"


def _now() -> datetime:
    return datetime.now(UTC)


def journal_path(folder: Path, kvm_host: str, vm_uuid: str) -> Path:
    """Where the journal of a VM on a KVM host lies."""
    return folder / slug(kvm_host) / f"{slug(vm_uuid)}{_SUFFIX}"


class Journal:
    """The journal in a file (`journal_path` says which). The caller holds the VM's lock."""

    def __init__(self, path: Path, clock: Callable[[], datetime] = _now) -> None:
        self.path = path
        self._clock = clock

    @property
    def done_path(self) -> Path:
        """The journal of the last window that ended well."""
        return self.path.with_name(self.path.name.removesuffix(_SUFFIX) + _DONE_SUFFIX)

    def append(
        self, step: Step, phase: Phase = "done", target: str = "", note: str = "", plan: WindowPlan | None = None
    ) -> None:
        """Write one record and return when it is on the disk."""
        line = Record(at=self._clock(), step=step, phase=phase, target=target, note=note, plan=plan)
        created = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            data = line.model_dump_json(exclude_defaults=True).encode() + b"\n"
            size = os.fstat(handle).st_size
            # A record that a power cut tore is closed off, so that the next one stands on a line of its own.
            if size and os.pread(handle, 1, size - 1) != b"\n":
                data = b"\n" + data
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        if created:
            sync_folder(self.path.parent)
            sync_folder(self.path.parent.parent)

    @contextmanager
    def step(self, step: Step, target: str = "", note: str = "") -> Iterator[None]:
        """Write the intent of a step before its body, and its result after it."""
        self.append(step, "intent", target, note)
        try:
            yield
        except BaseException as exc:
            self.append(step, "failed", target, f"{type(exc).__name__}: {exc}"[:2000])
            raise
        self.append(step, "done", target)

    def records(self) -> list[Record]:
        """What was written, in order; a torn line is passed over. IntegrityError when a whole line makes no sense."""
        return read_records(self.path)

    def open_window(self) -> OpenWindow | None:
        """The unfinished window, or None."""
        return open_window_of(self.records())

    def finish(self, note: str = "") -> None:
        """Write DONE and keep the journal as the last good one; nothing happens when there is none."""
        if not self.path.exists():
            return
        self.append(Step.DONE, note=note)
        self.path.rename(self.done_path)
        sync_folder(self.path.parent)


def read_records(path: Path) -> list[Record]:
    """The records of a journal file; none when there is no file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as exc:
            # Torn by a power cut: nothing was done on the strength of it, as it never got through its fsync.
            if not _is_json(line):
                continue
            found = exc.errors()[0]
            what = f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
            raise IntegrityError(f"{path} line {number}", "a journal record", what) from exc
    return records


def unfinished(folder: Path, kvm_host: str | None = None) -> list[Path]:
    """The journals of unfinished windows (of one KVM host)."""
    where = slug(kvm_host) if kvm_host is not None else "*"
    found = (path for path in folder.glob(f"{where}/*{_SUFFIX}") if not path.name.endswith(_DONE_SUFFIX))
    return sorted(path for path in found if open_window_of(read_records(path)) is not None)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
