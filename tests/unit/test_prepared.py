"""What stage 0 tells stage 1 of dumps."""

from __future__ import annotations

from typing import Any

from tasks.drivers.databases import data_patterns
from tasks.model.manifest import DumpRecord
from tasks.model.prepared import Prepared, shrunk
from tests.unit.records import NIGHT, ZEROS


def dump(engine: str = "mariadb", database: str = "shop", size_bytes: int = 100) -> DumpRecord:
    values = {"engine": engine, "database": database, "path": f"/d/{engine}/{database}", "size_bytes": size_bytes}
    return DumpRecord.model_validate({**values, "sha256": ZEROS})


def prepared(*dumps: DumpRecord, uncovered: tuple[str, ...] = ()) -> Prepared:
    values: dict[str, Any] = {"client": "a", "started": NIGHT, "ended": NIGHT, "dumps": dumps, "uncovered": uncovered}
    return Prepared.model_construct(**values)


def test_engine_is_covered_when_all_of_it_was_dumped() -> None:
    made = prepared(dump(), dump("command", "oracle"), uncovered=("command oracle",))
    assert made.covered("mariadb")
    assert not made.covered("postgresql")
    assert not made.covered("command oracle")
    assert not prepared(dump(), uncovered=("mariadb",)).covered("mariadb")


def test_dump_that_lost_more_than_it_may_is_told() -> None:
    before = [dump(size_bytes=1000), dump(database="crm", size_bytes=1000)]
    now = [dump(size_bytes=499), dump(database="crm", size_bytes=500), dump(database="new", size_bytes=1)]
    assert shrunk(before, now, 50) == ["mariadb shop: its dump shrank from 1000 to 499 bytes"]


def test_only_journals_of_sqlite_are_left_out() -> None:
    assert data_patterns("sqlite", ["/srv/a*[b].db"])[0] == r"/srv/a\*\[b].db-wal"
    assert "/srv/a.db" not in data_patterns("sqlite", ["/srv/a.db"])
    assert data_patterns("command", ["x"]) == ()
    assert data_patterns("redis", []) == ("/var/lib/redis/*", "/var/lib/valkey/*")
