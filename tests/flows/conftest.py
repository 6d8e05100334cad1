"""One Prefect server for all flow tests of a session, over a copy of a database that is migrated already."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks.drivers import process
from tests.lab.prefect_database import migrated_copy

if TYPE_CHECKING:
    from tests.flows.fake_site import FakeSite  # imports Prefect, which must wait for its settings

START_DEADLINE_S = 120


def _connection(database: Path) -> str:
    return f"sqlite+aiosqlite:///{database}"


def _server_settings(home: Path, database: Path) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": _connection(database),
        "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # SQLite's writers wait for each other, and machines are busy
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
        # The recorder waits this long for a batch to fill: what a test reads back is there sooner. Below 1 it spins.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "DO_NOT_TRACK": "1",
    }


def _client_settings(home: Path, api_url: str, database: Path) -> dict[str, str]:
    return {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": _connection(database),  # as where server and worker share a machine
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": api_url,
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        # The server speaks http; each client would read the machine's certificates all the same (0.1 s).
        "PREFECT_API_TLS_INSECURE_SKIP_VERIFY": "true",
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,503",
        "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks,blocks,flows",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",  # thousands of lines that no test reads
        "DO_NOT_TRACK": "1",
    }


def _clean_environment() -> dict[str, str]:
    """Return our environment without the operator's own Prefect settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(api_url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{api_url}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    raise RuntimeError(f"the Prefect server of the flow tests did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def prefect_api_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the session's server; settings of this process (and of what it starts) point to it meanwhile."""
    scratch = tmp_path_factory.mktemp("prefect")
    port, log = _free_port(), scratch / "server.log"
    api_url = f"http://127.0.0.1:{port}/api"
    database = migrated_copy(scratch / "server.sqlite")
    application = "prefect.server.api.server:create_app"
    argv = [sys.executable, "-m", "uvicorn", "--factory", application, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*process.DYING_WITH_PARENT, *argv, "--log-level", "error", "--lifespan", "on"],
            env={**_clean_environment(), **_server_settings(scratch / "server", database)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C ends the tests first, then the server
        )
    try:
        from prefect.context import refresh_global_settings_context  # 2 s, while the server starts
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        with pytest.MonkeyPatch.context() as patch:
            for name in set(os.environ) - set(_clean_environment()):
                patch.delenv(name)
            for name, value in _client_settings(scratch / "client", api_url, database).items():
                patch.setenv(name, value)
            refresh_global_settings_context()
            _wait_until_healthy(api_url, server, log)
            # A flow run waits up to 1 s for its heartbeat thread when it ends. None has no spelling in the environment.
            with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                yield api_url
            _drain()
        refresh_global_settings_context()
    finally:
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _drain() -> None:
    """Send what is queued (logs, events) before the server goes, so that nothing retries against a closed port."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=10)


@pytest.fixture(autouse=True)
def _prefect(prefect_api_url: str) -> None:
    """Every test in this folder runs against the session's server."""


@pytest.fixture(scope="session")
def _site(prefect_api_url: str, tmp_path_factory: pytest.TempPathFactory) -> "FakeSite":
    """One folder for the sites of all tests: their blocks are made once (0.3 s each)."""
    from tasks import declaration
    from tests.flows.fake_site import FakeSite

    site = FakeSite(tmp_path_factory.mktemp("site"))
    site.create()
    declaration.apply(declaration.load(site.inventory))
    return site


@pytest.fixture
def site(_site: "FakeSite", monkeypatch: pytest.MonkeyPatch) -> "FakeSite":
    """A site with one KVM host and two clients, empty stores, and fakes for what lies beyond ssh."""
    from tests.flows.fake_site import FakeSite

    fresh = FakeSite(_site.root)
    fresh.create()
    fresh.install(monkeypatch)
    return fresh
