"""The cases of vdo_cases.py, which run in a guest of their own (vdo_guest.py), one by one."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from tests.lab import vdo_cases, vdo_guest

CASES = [name for name in vars(vdo_cases) if name.startswith("test_")]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """What was wrong with each case; "" for one that passed."""
    found = {}
    with vdo_guest.run(vdo_guest.pytest_command(["tests/lab/vdo_cases.py", "--timeout=600"])) as answer:
        for case in ET.parse(answer / "report.xml").iter("testcase"):
            wrong = [child.text or "" for child in case if child.tag in ("failure", "error", "skipped")]
            found[case.attrib["name"]] = "\n".join(wrong)
    return found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_on_a_real_vdo_volume(outcomes: dict[str, str], case: str) -> None:
    assert case in outcomes, "it did not run"
    assert not outcomes[case], outcomes[case]
