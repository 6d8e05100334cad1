"""The cases of nfs_cases.py, which run in a guest of their own (nfs_guest.py), one by one."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.lab import nfs_cases, nfs_guest

CASES = [name for name in vars(nfs_cases) if name.startswith("test_")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What was wrong with each case; "" for one that passed."""
    report = tmp_path_factory.mktemp("nfs") / "report.xml"
    nfs_guest.run_tests([str(Path(nfs_cases.__file__)), "--timeout=200"], report)
    found = {}
    for case in ET.parse(report).iter("testcase"):
        wrong = [child.text or "" for child in case if child.tag in ("failure", "error", "skipped")]
        found[case.attrib["name"]] = "\n".join(wrong)
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_on_a_real_nfs_mount(outcomes: dict[str, str], case: str) -> None:
    assert case in outcomes, "it did not run"
    assert not outcomes[case], outcomes[case]
