"""Read the inventory's YAML file; report every problem at once with its path and line."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tasks.errors import ConfigError, InventoryError
from tasks.model.inventory import Inventory

DEFAULT_FILE = "/etc/gbs/inventory.yaml"
MAX_BYTES = 16 << 20

Path_ = tuple[str, ...]


def inventory_path() -> Path:
    """The file that GBS_INVENTORY names, else /etc/gbs/inventory.yaml."""
    return Path(os.environ.get("GBS_INVENTORY") or DEFAULT_FILE)


def load(path: Path | None = None) -> Inventory:
    """The validated inventory of `path` (default: `inventory_path()`).

    Raises ConfigError when the file cannot be read, InventoryError with all problems when it does not validate.
    """
    path = path or inventory_path()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError("inventory is too large", str(path), f"at most {MAX_BYTES} bytes are read")
        text = path.read_text("utf-8")
    except FileNotFoundError as exc:
        raise ConfigError("no inventory", str(path), "write one or set GBS_INVENTORY to its path") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("inventory cannot be read", str(path), str(exc)) from exc
    return parse(text, str(path))


def parse(text: str, name: str) -> Inventory:
    """The validated inventory that `text` declares; `name` is what errors call the file."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise InventoryError(name, [f"{where}not YAML: {getattr(exc, 'problem', None) or exc}"]) from exc
    except RecursionError as exc:
        raise InventoryError(name, ["not YAML that can be read: nested too deeply"]) from exc
    lines: dict[Path_, int] = {}
    problems = [f"line {line}: {dotted(path)}: stands twice" for path, line in _index(node, (), lines)]
    try:
        inventory = Inventory.model_validate(data if data is not None else {})
    except ValidationError as exc:
        problems += [_problem(error, lines) for error in exc.errors()]
        raise InventoryError(name, problems) from exc
    problems += [f"line {_line(path, lines)}: {dotted(path)}: {text}" for path, text in inventory.mistakes()]
    if problems:
        raise InventoryError(name, problems)
    return inventory


def dotted(path: Path_) -> str:
    """A path in the file as operators write it."""
    return ".".join(path) or "the whole file"


def _index(node: yaml.Node | None, path: Path_, lines: dict[Path_, int]) -> Iterator[tuple[Path_, int]]:
    """Fill `lines` with the line of every path; yield the keys that stand twice."""
    if node is None:
        return
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            child = (*path, str(key.value))
            if child[-1] in seen:
                yield child, key.start_mark.line + 1
            seen.add(child[-1])
            lines[child] = key.start_mark.line + 1
            yield from _index(value, child, lines)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            yield from _index(value, (*path, str(position)), lines)


def _line(path: Path_, lines: dict[Path_, int]) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _problem(error: Any, lines: dict[Path_, int]) -> str:
    path = tuple(str(part) for part in error["loc"] if part != "[key]")
    text = {
        "extra_forbidden": "unknown key",
        "missing": "is missing",
    }.get(error["type"], error["msg"].removeprefix("Value error, "))
    # The value of an unknown key may be a secret somebody put in the wrong place.
    shown = isinstance(error["input"], str | int | float) and error["type"] != "extra_forbidden"
    given = f" (given: {error['input']!r:.60})" if shown else ""
    return f"line {_line(path, lines)}: {dotted(path)}: {text}{given}"
