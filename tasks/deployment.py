"""The work pool and the deployments on the Prefect server, as prefect.yaml and the inventory say. Needs no run."""

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker

from tasks.drivers import inventory_file, process
from tasks.drivers.progress import reporting
from tasks.errors import ConfigError, Unreachable

log = logging.getLogger(__name__)
POOL = "gbs"
PREFECT_FILE = Path(__file__).resolve().parents[1] / "prefect.yaml"
"""Beside the packages, as in a checkout."""
DEPLOY_DEADLINE_S = 600
COMPARED = (
    *("entrypoint", "description", "tags", "schedules", "parameter_openapi_schema", "enforce_parameter_schema"),
    *("concurrency_limit", "concurrency_options", "work_pool_name", "job_variables", "pull_steps"),
)
_DEPLOYED = re.compile(rb"Deployment '([^']+)'\s")

Action = Literal["created", "changed", "unchanged"]


@dataclass(frozen=True)
class Deployed:
    """A deployment (or the work pool), what was done to it, which of its fields changed, and when it runs."""

    name: str
    kind: Literal["work pool", "deployment"]
    action: Action
    fields: tuple[str, ...] = ()
    schedule: str = ""


def deploy(run_settings: Mapping[str, str], prefect_file: Path | None = None) -> list[Deployed]:
    """Make the work pool, then the deployments of `prefect_file` (default PREFECT_FILE); what each of them became.

    `run_settings` is the environment of every run. Raises ConfigError when there is no file or no server is named,
    Unreachable when the server does not answer, InventoryError when the run forms could not be made.
    """
    prefect_file = (prefect_file or PREFECT_FILE).absolute()
    names = _declared(prefect_file)
    inventory_file.load()
    with _server() as client:
        pool = _make_pool(client, base_job_template(run_settings))
        before = _deployments(client, names)
        _run_deploy(prefect_file)
        after = _deployments(client, names)
    return [pool, *(_compared(before.get(name), deployed) for name, deployed in after.items())]


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    url = PREFECT_API_URL.value()
    if not url:  # Prefect would start a server of its own, and end it with us
        fix = "set it to the server's, for example http://127.0.0.1:4200/api"
        raise ConfigError("no Prefect server is named", "PREFECT_API_URL", fix)
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
        if error is not None:
            reason = f"{error or type(error).__name__}; start it with: prefect server start"
            raise Unreachable(f"the Prefect server {url}", reason)
        yield client


def base_job_template(run_settings: Mapping[str, str]) -> dict[str, Any]:
    """A process pool's job template with which runs survive the stop of their worker, and see our inventory.

    Measured on Prefect 3.8.8: with its own template, a worker that stops kills its runs without any cleanup.
    """
    template = ProcessWorker.get_default_base_job_template()
    variables = template["variables"]["properties"]
    variables["command"]["default"] = f"{sys.executable} -m prefect flow-run execute"
    variables["stream_output"]["default"] = False
    environment = dict(run_settings)
    if "GBS_INVENTORY" in os.environ:
        environment["GBS_INVENTORY"] = str(inventory_file.inventory_path().absolute())
    variables["env"]["default"] = environment
    return template


def _declared(prefect_file: Path) -> list[str]:
    try:
        return [entry["name"] for entry in yaml.safe_load(prefect_file.read_text())["deployments"]]
    except FileNotFoundError as exc:
        raise ConfigError("no prefect.yaml", str(prefect_file), "name it with --prefect-file") from exc
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as exc:
        raise ConfigError("prefect.yaml cannot be read", str(prefect_file), repr(exc)) from exc


def _make_pool(client: SyncPrefectClient, template: dict[str, Any]) -> Deployed:
    try:
        present = client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        return Deployed(POOL, "work pool", "created")
    if present.type != "process":
        fix = f"delete it: prefect work-pool delete {POOL}"
        raise ConfigError(f"work pool {POOL!r} is of type {present.type!r}, not process", "Prefect", fix)
    if present.base_job_template == template:
        return Deployed(POOL, "work pool", "unchanged")
    client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))
    return Deployed(POOL, "work pool", "changed", ("base_job_template",))


def _run_deploy(prefect_file: Path) -> None:
    argv = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_file)]
    with reporting(log, "deploy"):
        process.run(
            argv,
            deadline_s=DEPLOY_DEADLINE_S,
            name="prefect deploy",
            env={"COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
            on_output=_say_deployed,
        )


def _say_deployed(text: bytes) -> None:
    for name in _DEPLOYED.findall(text):
        log.info("deployed %s", name.decode())


def _deployments(client: SyncPrefectClient, names: list[str]) -> dict[str, DeploymentResponse]:
    chosen = DeploymentFilter(name=DeploymentFilterName(any_=names))
    found = {found.name: found for found in client.read_deployments(deployment_filter=chosen)}
    return {name: found[name] for name in names if name in found}


def _compared(before: DeploymentResponse | None, after: DeploymentResponse) -> Deployed:
    fields = tuple(name for name in COMPARED if before is not None and _value(before, name) != _value(after, name))
    action: Action = "created" if before is None else "changed" if fields else "unchanged"
    crons = (row.schedule for row in after.schedules if row.active)
    schedule = "; ".join(f"{getattr(each, 'cron', each)} {getattr(each, 'timezone', '')}" for each in crons)
    return Deployed(after.name, "deployment", action, fields, schedule)


def _value(deployment: DeploymentResponse, name: str) -> Any:
    if name == "schedules":
        return [(row.slug, row.active, row.schedule) for row in deployment.schedules]
    if name == "concurrency_limit":
        limit = deployment.global_concurrency_limit
        return limit.limit if limit else None
    return getattr(deployment, name)
