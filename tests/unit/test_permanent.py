"""The permanent store is proven before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.drivers import answering, permanent
from tasks.drivers.permanent import MARKER, PermanentPlace, prove
from tasks.errors import StoreNotMounted, StoreSilent

EXPORT = "nas:/export/gbs"


def place(path: Path, kind: str = "local") -> PermanentPlace:
    return PermanentPlace(path, "far-1", kind, EXPORT if kind == "nfs4" else None)  # type: ignore[arg-type]


def pretend_mounted(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Make /proc/self/mountinfo end with another line."""
    real = Path("/proc/self/mountinfo").read_text()
    read_text = Path.read_text

    def read(self: Path, *args: str) -> str:
        return f"{real}{line}\n" if str(self) == "/proc/self/mountinfo" else read_text(self, *args)

    monkeypatch.setattr(Path, "read_text", read)


def test_local_store_with_its_marker_is_proven(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text("far-1\n")
    prove(place(tmp_path))


@pytest.mark.parametrize("missing", ["marker", "folder"])
def test_missing_marker_is_refused_with_the_command_that_makes_it(tmp_path: Path, missing: str) -> None:
    path = tmp_path if missing == "marker" else tmp_path / "not there"
    with pytest.raises(StoreNotMounted, match=r"marker .gbs-store is missing; nothing was written.*echo far-1 >"):
        prove(place(path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"far-2", b"far-1x", b"\xff\xfe"])
def test_wrong_marker_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MARKER).write_bytes(content)
    with pytest.raises(StoreNotMounted, match="the marker says"):
        prove(place(tmp_path))


def test_nfs4_that_is_not_mounted_is_refused_though_the_marker_is_there(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text("far-1")
    with pytest.raises(StoreNotMounted, match=rf"{EXPORT} is not mounted there.*; mount {EXPORT} at {tmp_path}"):
        prove(place(tmp_path, "nfs4"))


@pytest.mark.parametrize(
    ("mount", "word"),
    [
        ("{path} rw - nfs4 nas:/export/gbs rw", None),
        ("{path} rw - nfs4 nas:/export/other rw", "is not mounted there"),
        ("{path} rw - nfs nas:/export/gbs rw", "is not mounted there"),
        ("{path}/below rw - nfs4 nas:/export/gbs rw", "is not mounted there"),
        ("{path} ro - nfs4 nas:/export/gbs rw", "read-only"),
        ("{path} rw - nfs4 nas:/export/gbs ro", "read-only"),
    ],
)
def test_nfs4_mount_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mount: str, word: str | None) -> None:
    (tmp_path / MARKER).write_text("far-1")
    pretend_mounted(monkeypatch, "99 27 0:99 / " + mount.format(path=tmp_path))
    if word is None:
        prove(place(tmp_path, "nfs4"))
        return
    with pytest.raises(StoreNotMounted, match=word):
        prove(place(tmp_path, "nfs4"))


def test_server_that_hangs_is_refused_after_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a FIFO that nobody writes; tests/lab has a real one."""
    os.mkfifo(tmp_path / MARKER)
    monkeypatch.setattr(permanent, "ANSWER_DEADLINE_S", 0.5)
    monkeypatch.setattr(answering, "PROBE_EVERY_S", 0.1)
    with pytest.raises(StoreSilent, match=r"does not answer: no answer within 0.5 s; look at"):
        prove(place(tmp_path))
    monkeypatch.setattr(permanent, "LOOK_DEADLINE_S", 0.2)
    with pytest.raises(StoreSilent, match=r"no answer within 0.2 s"):
        permanent.look(place(tmp_path), Path.read_text, tmp_path / MARKER)


def test_only_what_lies_in_the_store_is_read_by_the_child(tmp_path: Path) -> None:
    store, dump = place(tmp_path / "far"), tmp_path / "far/night/x"
    dump.parent.mkdir(parents=True)
    dump.touch()
    assert permanent.reading(store, dump, os.getpid) != os.getpid()
    assert permanent.reading(store, dump, dump.is_file)
    assert permanent.reading(store, tmp_path / "farther/x", os.getpid) == os.getpid()
