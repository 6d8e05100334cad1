"""How Prefect's UI has a run: what its page asks the API for, and how long that takes."""

from __future__ import annotations

import dataclasses
import json
import time
import urllib.request
from typing import Any

from tests.bench.gauges import timed
from tests.lab.prefect_server import PrefectServer

DEADLINE_S = 120
_ENDED = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]


@dataclasses.dataclass
class Shown:
    """A run in the UI: its task runs, how long after its end the last one showed up, what its page costs."""

    state: str
    task_runs: int
    late_s: float
    page_s: float
    page_kib: float

    @property
    def words(self) -> str:
        """A line about it."""
        lag = f"all there and ended {self.late_s:.1f} s after the run"
        graph = f"its graph {self.page_kib:.0f} KiB in {self.page_s:.1f} s"
        return f"UI: {self.state}, {self.task_runs} task runs, {lag}; {graph}"


def shown(server: PrefectServer) -> Shown:
    """How the newest run is shown, once its number of ended task runs stands still for 3 s."""
    (run,) = _ask(server, "flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 1})
    began = changed = time.monotonic()
    ended = -1
    while time.monotonic() - changed < 3 and time.monotonic() - began < DEADLINE_S:
        found = _count(server, run["id"], _ENDED)
        if found != ended:
            ended, changed = found, time.monotonic()
        time.sleep(0.2)
    graph = b""

    def load() -> None:
        nonlocal graph
        with urllib.request.urlopen(f"{server.ui}/api/flow_runs/{run['id']}/graph-v2", timeout=60) as answer:
            graph = answer.read()

    page_s = timed(load)
    return Shown(run["state_name"], ended, changed - began, page_s, len(graph) / 1024)


def _count(server: PrefectServer, run: str, states: list[str]) -> int:
    chosen = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"state": {"type": {"any_": states}}}}
    return int(_ask(server, "task_runs/count", chosen))


def _ask(server: PrefectServer, what: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{server.ui}/api/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
