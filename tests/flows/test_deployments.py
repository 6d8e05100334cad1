"""The deployments: `gbs deploy`, the schedule, the run forms, and a worker that runs what was submitted in one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.flows.fake_site import FakeSite

ROOT = Path(__file__).parents[2]
NAMES = {
    *("nightly", "prepare", "overnight", "permanent", "kvmimg-get", "kvmimg-update", "kvmsnap-create"),
    *("kvmsnap-purge", "recover-vm", "instant-vm", "reconcile", "verify-images", "verify-points", "devices"),
    *("replicate", "verify-replicas", "image-fetch", "recover-files", "recover-database", "drill"),
    "recover-physical",
}
SAMPLE = {"older_than_days": 0, "at_most": None, "percent": 1}
"""What the second schedule of verify-images asks for."""
RUN_DEADLINE_S = 120


def deploy(inventory: Path, folder: Path, *options: str) -> dict[str, dict[str, str]]:
    """`gbs deploy` by the inventory, from another folder than the checkout."""
    ended = subprocess.run(
        [sys.executable, "-c", "from flows.cli.main import main; main()", "deploy", "--json", *options],
        env={**os.environ, "GBS_INVENTORY": str(inventory), "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return {row["name"]: row for row in json.loads(ended.stdout)}


@pytest.fixture(scope="module")
def inventory(_site: FakeSite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with two VMs of which there is no backup, in folders of its own."""
    site = FakeSite(tmp_path_factory.mktemp("deployed"))
    site.create()
    site.declare(
        {"kvm1": {"address": "kvm1.test"}},
        {"web1": {"address": "web1.test", "vm": "web1"}, "web2": {"address": "web2.test", "vm": "web 2"}},
    )
    return site.inventory


@pytest.fixture(scope="module")
def deployed(inventory: Path) -> dict[str, dict[str, str]]:
    """What the first `gbs deploy` on the server said."""
    return deploy(inventory, inventory.parent)


@pytest.fixture(scope="module")
def api(prefect_api_url: str, deployed: dict[str, Any]) -> Iterator[httpx.Client]:
    """The server's API, as the UI speaks to it."""
    with httpx.Client(base_url=prefect_api_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def worker(api: httpx.Client, inventory: Path) -> Iterator[None]:
    """A worker on the pool, ended with all that it started."""
    log = inventory.with_name("worker.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "gbs", "--name", "flow-tests"],
            env={**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_WORKER_PREFETCH_SECONDS": "1"},
            cwd=inventory.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    yield
    assert process.poll() is None, log.read_text()[-2000:]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def deployment(api: httpx.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/deployments/name/{name}/{name}").raise_for_status().json()
    return found


def submit(api: httpx.Client, name: str, parameters: dict[str, Any]) -> httpx.Response:
    """What the run form sends; SQLite on a busy machine answers 503 now and then."""
    body = {"state": {"type": "SCHEDULED"}, "parameters": parameters, "enforce_parameter_schema": True}
    for _ in range(10):
        answer = api.post(f"/deployments/{deployment(api, name)['id']}/create_flow_run", json=body)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            break
        time.sleep(1)
    return answer


def ended(api: httpx.Client, run_id: str) -> dict[str, Any]:
    """The run when it has ended."""
    deadline = time.monotonic() + RUN_DEADLINE_S
    while time.monotonic() < deadline:
        run: dict[str, Any] = api.get(f"/flow_runs/{run_id}").raise_for_status().json()
        if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return run
        time.sleep(0.3)
    raise AssertionError(f"run {run['name']} is still {run['state']['name']}")


def test_deploy_fresh_server_makes_pool_and_all(deployed: dict[str, dict[str, str]], api: httpx.Client) -> None:
    assert deployed["gbs"]["kind"] == "work pool"
    assert {row["action"] for row in deployed.values()} == {"created"}
    assert set(deployed) == NAMES | {"gbs"}
    found = api.post("/deployments/filter", json={}).raise_for_status().json()
    assert {row["name"] for row in found} == NAMES
    assert all(row["work_pool_name"] == "gbs" and row["enforce_parameter_schema"] for row in found)
    assert all(row["description"] and not row["pull_steps"] for row in found)


def test_deploy_pool_runs_survive_their_worker_and_know_the_inventory(api: httpx.Client, inventory: Path) -> None:
    pool = api.get("/work_pools/gbs").raise_for_status().json()
    variables = pool["base_job_template"]["variables"]["properties"]
    assert variables["stream_output"]["default"] is False
    assert variables["command"]["default"] == f"{sys.executable} -m prefect flow-run execute"
    environment = variables["env"]["default"]
    assert environment["GBS_INVENTORY"] == str(inventory)
    assert environment["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] == "CRITICAL"


def test_nightly_scheduled_once_by_slug_in_its_time_zone(api: httpx.Client) -> None:
    found = deployment(api, "nightly")
    schedules = [(row["slug"], row["active"], row["schedule"]["timezone"]) for row in found["schedules"]]
    assert schedules == [("every-night", True, "Europe/Amsterdam")]
    assert found["schedules"][0]["schedule"]["cron"] == "30 0 * * *"
    assert found["global_concurrency_limit"]["limit"] == 1
    assert found["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_reconcile_and_verify_run_by_schedule(api: httpx.Client) -> None:
    expected: dict[str, Any] = {
        "reconcile": {"*/15 * * * *": {}},
        "drill": {"30 5 * * *": {}},
        "verify-images": {"30 6 * * *": {}, "0 6 * * *": SAMPLE},
        "verify-replicas": {"30 8 * * *": {}, "0 8 * * *": SAMPLE},
        "verify-points": {"0 7 * * 0": {}, "0 7 * * 1-6": {"percent": 2}},
    }
    for name, schedules in expected.items():
        rows = deployment(api, name)["schedules"]
        assert all(row["active"] for row in rows)
        assert {row["schedule"]["cron"]: row["parameters"] for row in rows} == schedules
    assert deployment(api, "verify-images")["parameters"] == {"older_than_days": 30, "at_most": 5, "percent": 100}


def test_run_forms_offer_the_inventory_with_descriptions(api: httpx.Client) -> None:
    form = deployment(api, "recover-vm")["parameter_openapi_schema"]
    assert form["properties"]["vm"]["enum"] == ["web1", "web 2"]
    assert form["required"] == ["vm"]
    clients = deployment(api, "nightly")["parameter_openapi_schema"]["properties"]["clients"]
    assert ["kvm1", "web1", "web2"] in [each.get("items", {}).get("enum") for each in clients["anyOf"]]
    for name in NAMES:
        for field, shown in deployment(api, name)["parameter_openapi_schema"]["properties"].items():
            assert shown.get("description"), f"{name}: {field} has no description"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("recover-vm", {"vm": "nosuch"}), ("recover-vm", {}), ("nightly", {"clients": ["web1", "nosuch"]})],
)
def test_run_form_value_not_in_the_list_refused(api: httpx.Client, name: str, parameters: dict[str, Any]) -> None:
    answer = submit(api, name, parameters)
    assert answer.status_code == httpx.codes.CONFLICT
    assert "Validation failed" in answer.text


def test_worker_runs_recover_vm_that_was_chosen_in_the_form(api: httpx.Client, inventory: Path, worker: None) -> None:
    recover = submit(api, "recover-vm", {"vm": "web 2", "dry_run": True}).raise_for_status().json()
    reconcile = submit(api, "reconcile", {}).raise_for_status().json()
    run = ended(api, recover["id"])
    assert run["name"] == "assess recovery of web 2 as of latest"
    assert run["state_type"] == "FAILED"
    assert "NothingToRecover: nothing to recover VM web 2 from: its definition is in" in run["state"]["message"]
    done = ended(api, reconcile["id"])
    assert (done["name"], done["state_type"]) == ("reconcile all VMs", "COMPLETED")


def test_deploy_again_unchanged_then_the_new_vm_in_the_form(api: httpx.Client, inventory: Path) -> None:
    text, two = inventory.read_text(), inventory.with_name("two.yaml")
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    declared["deployments"] = [each for each in declared["deployments"] if each["name"] in ("nightly", "recover-vm")]
    two.write_text(yaml.safe_dump(declared))
    try:
        inventory.write_text(text.replace("vm: web 2", "vm: web3"))
        rows = deploy(inventory, inventory.parent, "--prefect-file", str(two))
        assert (rows["recover-vm"]["action"], rows["recover-vm"]["fields"]) == ("changed", "parameter_openapi_schema")
        assert {rows[name]["action"] for name in ("gbs", "nightly")} == {"unchanged"}
        assert deployment(api, "recover-vm")["parameter_openapi_schema"]["properties"]["vm"]["enum"] == ["web1", "web3"]
        assert len(deployment(api, "nightly")["schedules"]) == 1
    finally:
        inventory.write_text(text)
