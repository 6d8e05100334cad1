"""Nights of clients that are no Linux: each by its own transport, and nothing is asked of one that cannot answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flows.nightly import nightly as nightly_flow
from tasks.drivers import platform_facts, saveset, tar_stream
from tasks.drivers.rsync import Wanted
from tasks.errors import ClientsFailed, CommandFailed
from tasks.model.outcome import Outcome
from tasks.model.rsync_daemon import DaemonTarget
from tests.flows.fake_site import FakeSite

nightly: Any = nightly_flow
CLIENTS: dict[str, dict[str, Any]] = {
    "win1": {
        "platform": "windows",
        "ssh": False,
        "transport": "rsync-daemon",
        "daemon": {"module": "all", "port": 8873},
        "paths": ["/cygdrive/c/Users"],
    },
    "hp1": {"platform": "hpux", "paths": ["/opt"], "hooks": [{"stage": "overnight", "before": ["hook", "sync it"]}]},
    "vms1": {"platform": "openvms", "paths": ["/dka100/users"], "dump_folder": "/dka100/gbs"},
}


@pytest.fixture
def others(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> FakeSite:
    """The site with a client of each kind."""
    site.declare({}, {name: {"address": f"{name}.test", **fields} for name, fields in CLIENTS.items()})
    for name in CLIENTS:
        site.files[name] = {"/data/file": name.encode()}

    def facts(shell, platform, now):
        site.call("facts", shell.target.name)
        return platform_facts.nameless(platform, now)

    monkeypatch.setattr(platform_facts, "collect", facts)
    monkeypatch.setattr(
        tar_stream,
        "pull",
        lambda target, tar, wanted, scratch, data, **_: site.pull(target, wanted, data),
    )
    monkeypatch.setattr(
        saveset, "pull", lambda shell, paths, folder, data, **_: site.pull(shell.target, Wanted(paths), data)
    )
    return site


def test_each_platform_comes_by_its_own_transport(others: FakeSite) -> None:
    results = nightly(list(CLIENTS))
    assert {(row.client, row.stage): row.outcome for row in results} == {
        (client, stage): Outcome.OK for client in CLIENTS for stage in ("prepare", "overnight", "permanent")
    }
    assert "connect" not in others.of("win1"), "nothing is run on a client without ssh"
    work = [verb for verb in others.of("hp1") if verb != "connect"]
    assert work == ["facts", "hook sync it", "pull", "sync", "rotate"]
    for client in CLIENTS:
        night = others.store / "overnight" / client
        assert (night / "data/data/file").read_bytes() == client.encode()
        assert json.loads((night / "facts.json").read_text())["os_id"] == CLIENTS[client]["platform"]


def test_daemon_is_reached_as_declared(others: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def pull(source, wanted, data, **_):
        seen.append((source, wanted))
        return others.pull(source, wanted, data)

    monkeypatch.setattr("tasks.drivers.rsync.pull", pull)
    nightly(["win1"])
    ((source, wanted),) = seen
    assert source == DaemonTarget("win1", "win1.test", 8873, "all")
    assert isinstance(wanted, Wanted)
    assert "--acls" not in wanted.options
    assert "pagefile.sys" in wanted.exclude


def test_platform_that_fails_leaves_its_last_night(others: FakeSite) -> None:
    nightly(["hp1"])
    before = (others.store / "overnight/hp1/manifest.json").read_text()
    others.fail("pull", "hp1", CommandFailed("tar of hp1", 2, "Unexpected EOF in archive"))
    with pytest.raises(ClientsFailed, match="Unexpected EOF"):
        nightly(["hp1"])
    assert (others.store / "overnight/hp1/manifest.json").read_text() == before
