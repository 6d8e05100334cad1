"""Files with secrets: read only when nobody else can read them."""

import re
from pathlib import Path

from tasks.errors import ConfigError

_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")


def require_secret(path: Path) -> None:
    """ConfigError when the file is missing or others can read it."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError("file can be read by others", str(path), f"chmod 600 {path}")
    except FileNotFoundError as exc:
        raise ConfigError("file is missing", str(path), "create it or correct its path in the inventory") from exc


def read_secret(path: Path) -> str:
    """What the file holds, without its last line breaks; as `require_secret`."""
    require_secret(path)
    return path.read_text().strip("\n")


def read_environment(path: Path | None) -> dict[str, str]:
    """The NAME=value lines of a file; empty lines and those that begin with # say nothing. No quotes are taken away."""
    found: dict[str, str] = {}
    for number, line in enumerate(read_secret(path).splitlines(), 1) if path else ():
        if not line.strip() or line.startswith("#"):
            continue
        parts = _LINE.fullmatch(line.strip())
        if parts is None:
            raise ConfigError(f"line {number} is not NAME=value", str(path), "correct that line")
        found[parts[1]] = parts[2]
    return found


def struck_out(text: str, secrets: dict[str, str]) -> str:
    """The text without the values of an environment, should a program have said one."""
    for value in sorted(secrets.values(), key=len, reverse=True):
        text = text.replace(value, "***") if len(value) > 3 else text
    return text
