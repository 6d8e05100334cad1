"""Tool versions: what a program says of itself, and no failure when it does not."""

import subprocess

from tasks.drivers.tool_versions import tool_versions


def test_versions_are_what_the_tools_say() -> None:
    found = tool_versions("rsync", "qemu-img")
    assert list(found) == ["gbs", "rsync", "qemu-img"]
    for tool in ("rsync", "qemu-img"):
        said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
        assert found[tool] in said.split("\n", 1)[0]
        assert found[tool][0].isdigit()


def test_version_of_a_tool_that_is_missing_or_silent_is_unknown() -> None:
    assert tool_versions("no-such-tool", "true-") == {**tool_versions(), "no-such-tool": "unknown", "true-": "unknown"}
