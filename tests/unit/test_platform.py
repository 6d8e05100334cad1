"""How commands are called on each platform."""

from __future__ import annotations

import base64
import re
import shlex
from pathlib import Path

import pytest

from tasks.drivers.saveset import folder_spec, tree_spec
from tasks.model.platform import PROFILES, Platform, dcl, powershell

DOCUMENT = Path(__file__).parents[2] / "docs/platforms.md"


@pytest.mark.parametrize("platform", list(Platform))
def test_profile_is_whole(platform: Platform) -> None:
    profile = PROFILES[platform]
    assert profile.transports
    assert "--archive" in profile.rsync_options
    assert profile.tried
    assert bool(profile.about) is (platform is not Platform.LINUX)
    assert bool(profile.tar) is ("tar" in profile.transports)


def decoded(line: str) -> str:
    *_, encoded = shlex.split(line)
    return base64.b64decode(encoded).decode("utf-16-le")


@pytest.mark.parametrize("word", ["plain", "a b", "it's", "$(id)", "`whoami`", "a;b", '"', "\u2019; calc", "é", "-x"])
def test_word_of_a_windows_command_is_only_data(word: str) -> None:
    line = PROFILES[Platform.WINDOWS].line(["prog.exe", word])
    assert line.isascii()
    assert not set(line) & set("&|<>^%\"'`$;")
    call = decoded(line).splitlines()[1]
    quoted = call.removeprefix("& 'prog.exe' ")
    assert quoted[0] == quoted[-1] == "'"
    inner = quoted[1:-1]
    for quote in "'\u2019":
        assert inner.count(quote) == 2 * word.count(quote), "PowerShell ends a string at each of these quotes"


def test_powershell_ends_at_an_error_and_with_the_status_of_the_program() -> None:
    first, *_, last = decoded(powershell("Get-Disk")).splitlines()
    assert first == "$ErrorActionPreference = 'Stop'"
    assert last == "exit $LASTEXITCODE"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["SHOW", "SYSTEM/NOPROCESS"], "SHOW SYSTEM/NOPROCESS"),
        (["BACKUP", "DKA0:[A.B...]*.*;*"], "BACKUP DKA0:[A.B...]*.*;*"),
        (["WRITE", 'say "x"'], 'WRITE "say ""x"""'),
        (["RUN", "a b"], 'RUN "a b"'),
        (["RUN", "a!b"], 'RUN "a!b"'),
    ],
)
def test_dcl_quotes_what_is_no_plain_word(argv: list[str], line: str) -> None:
    assert dcl(argv) == line


@pytest.mark.parametrize(
    ("path", "folder", "tree"),
    [
        ("/dka100/users/smith", "DKA100:[USERS.SMITH]", "DKA100:[USERS.SMITH...]*.*;*"),
        ("/dka100", "DKA100:[000000]", "DKA100:[000000...]*.*;*"),
    ],
)
def test_path_becomes_a_specification_of_openvms(path: str, folder: str, tree: str) -> None:
    assert folder_spec(path) == folder
    assert tree_spec(path) == tree


@pytest.mark.parametrize("platform", list(Platform))
def test_documents_say_against_what_a_profile_was_tried(platform: Platform) -> None:
    profile = PROFILES[platform]
    rows = [line.split("|") for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `{platform}` |")]
    ((_, _, transports, tried, _),) = rows
    assert tried.strip() == profile.tried
    assert re.findall("`([a-z-]+)`", transports) == list(profile.transports)
