"""How full the stores are, what each client costs, and that what cannot fit is not begun."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import BaseModel

from flows.cli.space import space_command
from flows.nightly import nightly
from tasks.errors import ClientsFailed
from tests.flows.fake_site import FakeSite


def space(*words: str) -> Result:
    return CliRunner().invoke(space_command, words, standalone_mode=False, catch_exceptions=False)


def asked(*words: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(space(*words, "--json").stdout)
    return answer


def du(*words: str | Path) -> int:
    lines = subprocess.check_output(["du", "-s", "-x", "-B1", *map(str, words)], text=True).splitlines()
    return sum(int(line.split()[0]) for line in lines)


def test_levels_are_noted_and_what_the_folders_come_to_is_walked_when_asked(site: FakeSite) -> None:
    site.files["db1"]["/srv/large"] = bytes(range(256)) * 4096 * 2
    nightly(["db1"])
    site.files["db1"]["/srv/more"] = b"x" * (1 << 20)
    first, *_ = asked()["stores"]
    assert (first["measured"], first["outlook"]["days"]) == (None, None)
    assert "not measured: gbs space --deep" in [row["note"] for row in first["savings"]]
    for name in ("store", "permanent"):
        kept = json.loads((site.store / f"space/levels-{name}.json").read_text())
        assert len(kept["levels"]) == 1
    time.sleep(1)  # a night's id is of the second
    nightly(["db1"])
    found = asked("--deep")
    stores = {row["name"]: row for row in found["stores"]}
    owners = {row["owner"]: row for row in found["owners"]}
    points, night = site.permanent / "db1", site.store / "overnight/db1"
    every = [*points.glob("daily.*")]
    links = {row["mechanism"]: row for row in stores["permanent"]["savings"]}["hard links"]
    # The records beside the points, and the folder that has them, are the client's too.
    records = du(*(path for path in points.iterdir() if path not in every)) if len([*points.iterdir()]) > 2 else 0
    assert owners["db1"]["permanent_bytes"] == du(*every) + records
    assert links["left_bytes"] == du(*every) + records + du(site.permanent / ".gbs-store")
    assert links["saved_bytes"] == du("-l", *every) - du(*every)
    assert owners["db1"]["store_bytes"] == du(night)
    assert owners["db1"]["newest_point"] == "daily.0"
    newest = owners["db1"]["newest_point_bytes"]
    assert 1 << 20 <= newest == du(points / "daily.1", points / "daily.0") - du(points / "daily.1")
    assert stores["store"]["room"]["vdo"] is None
    # By the fake's pull nothing is linked: a night adds all of it. What it added is in its manifest.
    cost = json.loads((night / "manifest.json").read_text())["costs"]
    files = sum(path.lstat().st_blocks * 512 for path in (night / "data").rglob("*") if path.is_file())
    assert [row["new_bytes"] for row in cost] == [owners["db1"]["last_night"]["new_bytes"]] == [files]


def test_table_says_what_is_not_known_and_what_lies_there_for_nobody(site: FakeSite) -> None:
    nightly(["db1"])
    (site.permanent / "old1/daily.0/data").mkdir(parents=True)
    (site.permanent / "old1/daily.0/data/file").write_bytes(b"x" * 3_000_000)
    trash = site.permanent / "db1/.trash-2026-12-01-daily.13-abcd"
    trash.mkdir()
    (trash / "file").write_bytes(b"x" * 1_000_000)
    for name in ("_images/kvm1/web1/20261101T000000Z", "_images/kvm1/stray/20261101T000000Z", "_server/test/1"):
        (site.permanent / name).mkdir(parents=True)
    said = space("--deep").stdout
    assert "old1 (not in the inventory)" in said
    assert "VM stray (no client's)" in said
    assert "(server)" in said
    (row,) = [line for line in said.splitlines() if line.startswith("web1 ")]
    assert "4.0 KiB" in row, "an image's replica is its client's"
    assert "not known: 1 of 5 days noted" in said
    assert "it does not lie on VDO" in said
    (row,) = [line for line in said.splitlines() if line.startswith("db1 ")]
    assert "KiB" in row
    assert "(daily.0)" in row
    (site.permanent / ".gbs-store").unlink()
    ended = space()
    assert ended.return_value == 3
    assert "out of reach" in ended.stdout
    assert "permanent: store" in ended.stderr
    assert "marker .gbs-store is missing" in ended.stderr


def test_client_whose_first_night_does_not_fit_is_refused_before_anything_is_pulled(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = site.facts

    def huge(shell: Any, now: Any) -> BaseModel:
        found = facts(shell, now)
        rows = [row.model_copy(update={"used_bytes": 1 << 60}) for row in found.file_systems]
        return found.model_copy(update={"file_systems": tuple(rows)})

    monkeypatch.setattr("tasks.preparation.facts.collect", huge)
    with pytest.raises(ClientsFailed, match=r"store for db1 \(1048576.0 TiB by its facts\) has no room"):
        nightly(["db1"])
    assert site.count("pull", "db1") == 0
