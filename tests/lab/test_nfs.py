"""The cases that run in guests of their own (nfs_guest.py), one by one."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab import nfs_guest

HERE = Path(__file__).parent
GUESTS = (
    ("nfs_cases.py", "nfs_night_cases.py"),
    ("nfs_store_cases.py", "nfs_flow_cases.py", "nfs_replica_cases.py"),
    ("nfs_engine_cases.py",),
)
"""What each guest runs; they work side by side, as they mostly wait."""


def cases(modules: Sequence[str]) -> list[str]:
    lines = (line for module in modules for line in (HERE / module).read_text().splitlines())
    return [line.removeprefix("def ").partition("(")[0] for line in lines if line.startswith("def test_")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What was wrong with each case; "" for one that passed."""
    folder = tmp_path_factory.mktemp("nfs")

    def run(number: int) -> Path:
        report = folder / f"{number}.xml"
        nfs_guest.run_tests([*(str(HERE / module) for module in GUESTS[number]), "--timeout=300"], report)
        return report

    with ThreadPoolExecutor() as pool:
        reports = list(pool.map(run, range(len(GUESTS))))
    found: dict[str, str] = {}
    for report in reports:
        for case in ET.parse(report).iter("testcase"):
            wrong = [child.text or "" for child in case if child.tag in ("failure", "error", "skipped")]
            name = case.attrib["name"].partition("[")[0]
            found[name] = "\n".join(filter(None, [found.get(name, ""), *wrong]))
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", [case for modules in GUESTS for case in cases(modules)])
def test_on_a_real_nfs_mount(outcomes: dict[str, str], case: str) -> None:
    assert case in outcomes, "it did not run"
    assert not outcomes[case], outcomes[case]
