"""Collecting facts through a real shell, with tools of our own on its PATH: one round trip, whatever is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from tasks.drivers import facts
from tasks.drivers.ssh import Output, Shell
from tasks.errors import CommandFailed
from tasks.model.facts import Facts

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CASES = Path(__file__).parent / "facts"


class Client:
    """A client with the tools that every one has, and lsblk and findmnt of the lab's guest."""

    def __init__(self, folder: Path) -> None:
        self.name, self.path, self.trips = "web1", folder, 0
        for tool in ("sh", "cat", "ls", "uname", "grep"):
            (folder / tool).symlink_to(shutil.which(tool) or "/missing")
        for tool, name in (("lsblk", "block_devices-web1"), ("findmnt", "file_systems-web1")):
            self.says(tool, json.dumps(json.loads((CASES / f"{name}.json").read_text())["output"]))

    def says(self, tool: str, text: str, status: int = 0) -> None:
        said = self.path / f"{tool}.txt"
        said.write_text(text)
        (self.path / tool).write_text(f"#!{shutil.which('sh')}\ncat '{said}'\nexit {status}\n")
        (self.path / tool).chmod(0o755)

    def run(self, command: Sequence[str], *, deadline_s: float, name: str) -> Output:
        self.trips += 1
        done = subprocess.run(
            command, env={"PATH": str(self.path)}, capture_output=True, text=True, timeout=deadline_s, check=False
        )
        return Output(done.returncode, done.stdout, done.stderr)

    def collect(self) -> Facts:
        return facts.collect(cast(Shell, self), NOW)


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


def test_client_without_any_optional_tool_is_collected_in_one_trip(client: Client) -> None:
    found = client.collect()
    assert client.trips == 1
    assert {row.mountpoint for row in found.file_systems} == {"/", "/boot", "/var"}
    assert (found.interfaces, found.routes, found.volume_groups, found.efi_boot) == (None, None, None, None)
    assert found.unread == ()


def test_tools_that_are_there_are_asked_for_json_first(client: Client) -> None:
    client.says("ip", '[{"ifname": "eth0", "mtu": 1500, "link_type": "ether", "address": "52:54:00:12:34:56"}]')
    found = client.collect()
    assert found.interfaces is not None
    assert [row.name for row in found.interfaces] == ["eth0"]


@pytest.mark.parametrize("said", ["{", "[1]", '[{"mtu": []}]', "[" * 100_000, "[null, 5]", '[{"ifname": "a\\nb"}]'])
def test_output_that_cannot_be_read_leaves_the_fact_unknown_and_is_said_in_one_line(client: Client, said: str) -> None:
    client.says("ip", said)
    client.says("lvm", said)
    found = client.collect()
    assert (found.volume_groups, found.hostname != "") == (None, True)
    assert {line.partition(":")[0] for line in found.unread} <= {"interfaces", "volume groups"}
    assert found.unread
    assert all(len(line.splitlines()) == 1 and len(line) < 600 for line in found.unread)


def test_lvs_that_cannot_be_read_fails_because_the_flavour_hangs_on_it(client: Client) -> None:
    client.says("lvs", "{")
    with pytest.raises(CommandFailed, match="lvs on web1"):
        client.collect()


@pytest.mark.parametrize("tool", ["lsblk", "findmnt"])
def test_client_without_a_tool_that_must_be_there_fails(client: Client, tool: str) -> None:
    (client.path / tool).unlink()
    with pytest.raises(CommandFailed, match="web1"):
        client.collect()


def test_tool_that_fails_leaves_its_fact_unknown(client: Client) -> None:
    client.says("lvm", '{"report": []}', status=5)
    client.says("efibootmgr", "EFI variables are not supported on this system.", status=2)
    found = client.collect()
    assert (found.volume_groups, found.efi_boot, found.unread) == (None, None, ())
