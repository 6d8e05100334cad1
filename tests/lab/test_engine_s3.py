"""restic in S3: the contract's core on a server that is not Amazon's but proves signatures (tests/lab/s3_server.py)."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.drivers import restic
from tasks.drivers.engines import Engine
from tasks.errors import AccessDenied, GbsError, StoreNotMounted
from tasks.model.inventory import Policy
from tests.lab.engine_bench import PASSWORD, POLICY, Bench, lock_that_comes_late_stays, nothing
from tests.lab.s3_server import KEY, NAME, S3Server
from tests.lab.sshd import free_port

MIB = 1 << 20


class S3Bench(Bench):
    """A client whose repository lies in a bucket; its keys are in a file that only root can read."""

    def __init__(self, folder: Path, server: S3Server) -> None:
        super().__init__("restic", folder)
        self.server = server
        self.url = f"s3:{server.url}/backup/{{client}}/{folder.name}"
        self.login("AWS_SHARED_CREDENTIALS_FILE", str(self.keys(KEY)))

    def keys(self, key: str) -> Path:
        return self.secret("keys", f"[default]\naws_access_key_id = {NAME}\naws_secret_access_key = {key}")

    def login(self, *pairs: str) -> None:
        lines = [f"{name}={value}" for name, value in zip(pairs[::2], pairs[1::2], strict=True)]
        self.secret("environment", "\n".join([f"SSL_CERT_FILE={self.server.certificate}", *lines]))

    def engine(self, *, reserve_bytes: int = 0, **changed: object) -> Engine:
        where = {"repository": self.url, "environment_file": str(self.folder / "environment")}
        return super().engine(reserve_bytes=reserve_bytes, **where, **changed)

    @property
    def where(self) -> str:
        return self.url.replace("{client}", "web1")

    @property
    def environment(self) -> dict[str, str]:
        lines = (self.folder / "environment").read_text().splitlines()
        return {**os.environ, **dict(line.split("=", 1) for line in lines)}

    def noise(self, number: int, mib: int) -> None:
        self.night(number)
        (self.source / "data" / "noise").write_bytes(os.urandom(mib * MIB))
        self.tree_again(number)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"), free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture
def bench(server: S3Server, tmp_path: Path) -> S3Bench:
    return S3Bench(tmp_path, server)


def test_nights_are_kept_given_up_read_and_brought_back(bench: S3Bench) -> None:
    bench.policy = Policy(daily=2, weekly=0, monthly=0, least=1, trash_days=0)
    for number in (1, 2, 3):
        assert bench.kept(number) == ["daily"]
    assert bench.nights() == {"daily.0": 3, "daily.1": 2}
    assert bench.restic("snapshots").count("web1 ") == 2
    rows = bench.engine().verify(100)
    assert [row.damaged for row in rows] == [(), ()]
    assert rows[0].read_bytes > 0
    assert "no errors were found" in bench.restic("check", "--read-data")


def test_wrong_keys_are_told_without_showing_them(bench: S3Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.kept(1)
    bench.night(2)
    for name, key in ((NAME, "a-wrong-key"), ("nobody:here", KEY)):
        bench.login("AWS_ACCESS_KEY_ID", name, "AWS_SECRET_ACCESS_KEY", key)
        with pytest.raises(AccessDenied, match="correct its environment_file") as caught:
            bench.engine().sync(bench.manifest, nothing)
        assert key not in f"{caught.value} {caplog.text}"


def test_bucket_that_is_gone_is_not_made_anew(bench: S3Bench) -> None:
    bench.kept(1)
    bench.url = bench.url.replace("/backup/", "/elsewhere/")
    bench.night(2)
    with pytest.raises(StoreNotMounted, match="its restic repository is gone"):
        bench.engine().sync(bench.manifest, nothing)


def test_keys_are_in_files_only(bench: S3Bench) -> None:
    """On no command line, and with a credentials file in no environment; that of a program only its owner can read."""
    bench.noise(1, 40)
    seen, modes, ended = set[bytes](), set[str](), threading.Event()

    def look() -> None:
        while not ended.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    argv = (process / "cmdline").read_bytes()
                    seen.add(argv)
                    if b"restic" in argv:
                        seen.add((process / "environ").read_bytes())
                        modes.add(oct((process / "environ").stat().st_mode & 0o777))
                except OSError:
                    continue

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        bench.sync_and_rotate()
    finally:
        ended.set()
        watcher.join()
    assert any(b"AWS_SHARED_CREDENTIALS_FILE" in text for text in seen)
    assert not [text for text in seen for secret in (KEY, PASSWORD) if secret.encode() in text]
    assert modes == {"0o400"}


def test_server_that_goes_in_the_middle_costs_nothing(bench: S3Bench) -> None:
    bench.kept(1)
    bench.noise(2, 200)

    def kill_when_it_has_some(done: int, total: int) -> None:
        if 40 * MIB < done < total:
            bench.server.kill()

    bench.policy = POLICY.model_copy(update={"transfer_deadline_s": 20})
    try:
        with pytest.raises(GbsError) as caught:
            bench.engine().sync(bench.manifest, kill_when_it_has_some)
        assert caught.value.transient, caught.value
        with pytest.raises(GbsError) as caught:
            bench.engine().points()
        assert caught.value.transient, caught.value
    finally:
        bench.server.start()
    bench.policy = POLICY
    assert bench.days() == {"daily.0": 1}
    assert bench.sync_and_rotate() == ["daily"]
    assert bench.nights() == {"daily.0": 2, "daily.1": 1}
    assert not bench.restic("list", "locks", "--no-lock").split(), "the lock of the one that was killed is removed"


def test_server_that_goes_before_a_manifest_is_read_is_no_lost_manifest(
    bench: S3Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.kept(1)
    shutil.rmtree(bench.store.root / "restic")
    real = restic.dump

    def dump(*what: Any) -> bytes | None:
        bench.server.kill()
        monkeypatch.setattr(restic, "QUICK_S", 20)  # restic itself tries for a quarter of an hour
        return real(*what)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(restic, "dump", dump)
            with pytest.raises(GbsError) as caught:
                bench.engine().points()
            assert caught.value.transient, caught.value
    finally:
        bench.server.start()
    assert bench.days() == {"daily.0": 1}


def test_lock_that_comes_while_dead_ones_are_removed_stays(bench: S3Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.kept(1)
    lock_that_comes_late_stays(bench, monkeypatch)
