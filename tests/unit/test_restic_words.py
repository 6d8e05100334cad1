"""What restic's own words mean: damage, or only that something was out of reach. The words are those of restic 0.14."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tasks.drivers import restic
from tasks.drivers.engines.restic_manifests import Manifests
from tasks.drivers.restic import Snapshot
from tasks.drivers.restic_repository import Repository
from tasks.errors import CommandFailed, IntegrityError
from tests.unit.records import NIGHT, night_manifest

ID = "7b4b151933f46363fb68ce818fc0aae5bd914924a408c8c064111175d7055bb8"
DAMAGE = [
    "cannot dump file: decrypting blob e346432021 failed: ciphertext verification failed",
    f'loading tree for snapshot "{ID}" failed: id {ID} not found in repository',
    "Fatal: load <index/65fb8474bc>: invalid data returned",
    "cannot dump file: ReadFull(<data/db1cfb5db7>): EOF",
    f"cannot dump file: ReadFull(<data/db1cfb5db7>): open /far/data/db/{ID}: no such file or directory",
    "cannot dump file: ReadFull(<data/db1cfb5db7>): The specified key does not exist.",
]
OUT_OF_REACH = [
    "cannot dump file: ReadFull(<data/db1cfb5db7>): read /far/data/db/db1cfb5db7: input/output error",
    "cannot dump file: ReadFull(<data/db1cfb5db7>): read /far/data/db/db1cfb5db7: stale NFS file handle",
    'cannot dump file: Get "https://s3.example.org/backup/data/db/db1cfb5db7": EOF',
    "Fatal: load <index/65fb8474bc>: dial tcp 10.0.0.1:443: connect: connection refused",
    "Fatal: cannot allocate memory",
    "",
]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    (tmp_path / "password").touch(mode=0o600)
    return Repository("/far", tmp_path / "password")


def says(monkeypatch: pytest.MonkeyPatch, folder: Path, status: int, said: str, printed: str = "") -> None:
    """Let a program be called restic that says so."""
    program = folder / "restic"
    program.write_text(f"#!/bin/sh\necho {shlex.quote(said)} >&2\necho {shlex.quote(printed)}\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("said", "error"), [*((said, IntegrityError) for said in DAMAGE), *((said, CommandFailed) for said in OUT_OF_REACH)]
)
def test_file_is_called_damaged_by_words_of_damage_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Repository, said: str, error: type[Exception]
) -> None:
    says(monkeypatch, tmp_path, 1, said)
    with pytest.raises(error):
        restic.dump(repository, ID, "/manifest.json")


def test_file_that_a_snapshot_does_not_have_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Repository
) -> None:
    says(monkeypatch, tmp_path, 2, 'cannot dump file: path "/nowhere" not found in snapshot')
    assert restic.dump(repository, ID, "/nowhere") is None


@pytest.mark.parametrize("called", ["could not load snapshot b8f9f9c1: ", 'Ignoring "b8f9f9c1": '])
def test_snapshot_that_restic_leaves_out_of_its_list_is_told_and_is_no_short_list_when_out_of_reach(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    repository: Repository,
    caplog: pytest.LogCaptureFixture,
    called: str,
) -> None:
    says(monkeypatch, tmp_path, 0, f"{called}load <snapshot/b8f9f9c121>: invalid data returned", "[]")
    assert restic.snapshots(repository) == []
    assert "b8f9f9c1" in caplog.text
    says(monkeypatch, tmp_path, 0, f"{called}load <snapshot/b8f9f9c121>: connection refused", "[]")
    with pytest.raises(CommandFailed, match="connection refused"):
        restic.snapshots(repository)


def test_list_of_snapshots_is_not_believed_when_restic_said_more_than_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Repository
) -> None:
    """What was out of reach may have been said first."""
    damage = f"could not load snapshot {ID}: ciphertext verification failed"
    says(monkeypatch, tmp_path, 0, "\n".join([damage] * 5000), "[]")
    with pytest.raises(CommandFailed, match="who is left out"):
        restic.snapshots(repository)


def test_manifest_is_read_from_the_repository_when_it_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Repository
) -> None:
    """The store is full, or read-only: it is then that somebody looks for a night to recover."""
    night = night_manifest(NIGHT)
    says(monkeypatch, tmp_path, 0, "", night.model_dump_json())
    (tmp_path / "kept").touch()
    assert Manifests("web1", repository, tmp_path / "kept").of(Snapshot(ID, ID, NIGHT, ())) == night
