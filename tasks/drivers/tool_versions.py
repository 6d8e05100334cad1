"""Which versions made a backup: what manifests say of the tools on this machine."""

import functools
import re
from importlib.metadata import version

from tasks.drivers import process
from tasks.errors import CommandFailed

_VERSION = re.compile(r"\d+(\.\d+)+\S*")
_DEADLINE_S = 20


def tool_versions(*tools: str) -> dict[str, str]:
    """The versions of GBS and of these programs, by name; `unknown` for one that does not say."""
    return {"gbs": version("gbs"), **{tool: _version_of(tool) for tool in tools}}


@functools.cache
def _version_of(tool: str) -> str:
    try:
        said = process.run([tool, "--version"], deadline_s=_DEADLINE_S).text
    except CommandFailed:
        return "unknown"
    found = _VERSION.search(said)
    return found[0].rstrip(",;") if found else "unknown"
