"""Engines in the inventory: what may stand there, and each mistake with its path and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.drivers.inventory_file import parse
from tasks.drivers.restic import parse_damage
from tasks.drivers.secret_file import read_environment, struck_out
from tasks.errors import ConfigError
from tasks.model.inventory import Inventory
from tasks.model.inventory_engines import filled
from tests.unit.test_inventory_file import BASE, problems

ENGINES = """\
engines:
  vault:
    restic: {password_file: /etc/gbs/restic.password}
  offsite:
    restic:
      repository: s3:https://s3.example.org/gbs/{client}
      password_file: /etc/gbs/restic.password
      environment_file: /etc/gbs/s3.environment
  tape:
    command:
      backup: [dsm, backup, '{source}', '-name={night}']
      list: [dsm, list, '{client}']
      restore: [dsm, restore, '{night}', '{target}']
      exit_codes: {0: ok, 4: warning, 8: retry, 12: failed}
policies:
  gold: {engine: offsite}
  paper: {engine: tape}
clients:
  web1: {address: web1.example.org, policy: gold}
"""


def test_engines_are_chosen_by_policy() -> None:
    found = parse(BASE + ENGINES, "inventory.yaml")
    assert found.policy_of(found.clients["web1"]).engine == "offsite"
    tape = found.engines["tape"].command
    assert tape is not None
    assert [tape.meaning(status) for status in (0, 4, 8, 12, 1, 137)] == [
        *("ok", "warning", "retry", "failed", "failed", "failed"),
    ]
    schema = json.dumps(Inventory.model_json_schema())
    assert '"password_file"' in schema
    assert '"exit_codes"' in schema


@pytest.mark.parametrize(
    ("was", "written", "problem"),
    [
        (
            "engine: offsite",
            "engine: nowhere",
            "line 20: policies.gold.engine: no engine 'nowhere'; known are rsnapshot",
        ),
        ("  vault:", "  rsnapshot:", "line 6: engines.rsnapshot: rsnapshot needs no declaration"),
        (
            "/gbs/{client}",
            "/gbs",
            "line 10: engines.offsite.restic.repository: each client has a repository of its own",
        ),
        ("https://s3", "https://me:secret@s3", "line 10: engines.offsite.restic.repository: a login is a secret"),
        ("s3:https://s3.example.org", "/srv/gbs/old", "line 10: engines.offsite.restic.repository: lies in the store"),
        ("environment_file: /etc", "environment: /etc", "line 12: engines.offsite.restic.environment: unknown key"),
        (
            "    restic: {password_file: /etc/gbs/restic.password}",
            "    restic: {}",
            "engines.vault.restic.password_file",
        ),
        ("    command:", "    restic: {password_file: /p}\n    command:", "line 13: engines.tape: an engine is either"),
        ("'{source}', ", "", "line 14: engines.tape.command: backup lacks {source}"),
        ("'{target}'", "'{where}'", "line 14: engines.tape.command: restore lacks {target}"),
        ("'{client}'", "'{target}'", "line 14: engines.tape.command: list: {target} is not one of client"),
        ("8: retry", "8: later", "engines.tape.command.exit_codes.8"),
        ("0: ok, ", "", "line 14: engines.tape.command: exit_codes are 0 to 255, and one of them is ok"),
    ],
)
def test_mistake_is_told_with_path_and_line(was: str, written: str, problem: str) -> None:
    assert was in ENGINES
    found = problems(BASE + ENGINES.replace(was, written, 1))
    assert any(problem in line for line in found), found
    assert not any("secret@" in line for line in found)


def test_placeholders_are_filled_once() -> None:
    words = ("a", "--name={client}-{night}", '{"json": {night}}', "{other}")
    assert filled(words, client="{night}", night="n") == ["a", "--name={night}-n", '{"json": n}', "{other}"]


def test_environment_of_an_engine_is_read_and_struck_out(tmp_path: Path) -> None:
    file = tmp_path / "environment"
    file.write_text("# S3\nAWS_ACCESS_KEY_ID=AKIA\n\nAWS_SECRET_ACCESS_KEY=a=b c\n")
    file.chmod(0o600)
    secrets = read_environment(file)
    assert secrets == {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "a=b c"}
    assert struck_out("denied: AKIA with a=b c", secrets) == "denied: *** with ***"
    file.write_text("export A=1\n")
    with pytest.raises(ConfigError, match="line 1 is not NAME=value"):
        read_environment(file)
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others"):
        read_environment(file)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("pack {a}: does not exist", True),
        ("pack {a}: unexpected file size: got 5004, expected 123", True),
        ("Pack ID does not match, want {a}, got {b}", True),
        ("pack {a} failed to download: StreamPack: open data/aa/{a}: no such file or directory", True),
        (
            "Load(<data/6c9c14d128>, 19975385, 0) returned error, retrying after 552ms: open data/{a}: no such file",
            False,
        ),
        ("pack {a}: not referenced in any index", False),
    ],
)
def test_damaged_packs_are_those_that_restic_names(line: str, named: bool) -> None:
    """As restic 0.14 says it."""
    a, b = "a" * 64, "b" * 64
    packs, _ = parse_damage(f"load indexes\n{line.format(a=a, b=b)}\nFatal: repository contains errors")
    assert packs == ({a} if named else set())
