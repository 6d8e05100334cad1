"""A Prefect server with its UI, and a worker, on loopback: they outlive who starts them, until `stop`."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.lab.prefect_database import migrated_copy
from tests.lab.process import LabError, ProcessRecord
from tests.lab.sshd import free_port

_START_DEADLINE_S = 180
_BIN = Path(sys.executable).parent


@dataclasses.dataclass
class PrefectServer:
    """A server whose state is below `directory`; its port is written down at the first start."""

    directory: Path

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        note = self.directory / "port"
        if not note.exists():
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            note.write_text(str(free_port()))
        return int(note.read_text())

    @property
    def ui(self) -> str:
        """The address that a person opens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> Path:
        """Its SQLite database."""
        return self.directory / "home/prefect.db"

    @property
    def environment(self) -> dict[str, str]:
        """What a process that talks to this server has in its environment, and nothing of another server's."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return {
            **clean,
            "PREFECT_HOME": str(self.directory / "home"),
            "PREFECT_API_URL": f"{self.ui}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # The newer UI asks a host outside for its settings.
            "PREFECT_SERVER_UI_V2_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
            "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks,blocks,flows",
            # The lab says when a night is. A run by the clock in the middle of a test would see a store that is hidden.
            "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_CLI_PROMPT": "false",
            # The server speaks http; each client would read the machine's certificates all the same (0.1 s).
            "PREFECT_API_TLS_INSECURE_SKIP_VERIFY": "true",
            "DO_NOT_TRACK": "1",
            # Prefect leaves folders in it.
            "TMPDIR": str(self.directory / "tmp"),
            "PATH": f"{_BIN}:{os.environ.get('PATH', '')}",
        }

    def start(self) -> None:
        """Start it, or leave the one that runs; returns when its API answers."""
        (self.directory / "tmp").mkdir(parents=True, exist_ok=True)
        if not self._running("server"):
            if not self.database.exists():
                migrated_copy(self.database)
            self._spawn("server", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        ends_at = time.monotonic() + _START_DEADLINE_S
        while not self._healthy():
            if time.monotonic() > ends_at or not self._running("server"):
                raise LabError(f"the Prefect server did not start: see {self.directory / 'server.log'}")
            time.sleep(0.3)

    def start_worker(self, pool: str, environment: dict[str, str]) -> None:
        """Start a worker of the pool, or leave the one that runs; `environment` is added to its own."""
        if not self._running("worker"):
            self._spawn("worker", "worker", "start", "--pool", pool, "--name", "lab", **environment)

    def stop(self) -> None:
        """End worker and server; what they kept stays."""
        for name in ("worker", "server"):
            record = ProcessRecord.load(self.directory / f"{name}.json")
            if record is not None:
                record.kill()

    def _spawn(self, name: str, *words: str, **environment: str) -> None:
        (self.directory / "home").mkdir(parents=True, exist_ok=True)
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(_BIN / "prefect"), *words],
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        ProcessRecord.of(process.pid).save(self.directory / f"{name}.json")

    def _running(self, name: str) -> bool:
        record = ProcessRecord.load(self.directory / f"{name}.json")
        return record is not None and record.alive()

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.ui}/api/health", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
