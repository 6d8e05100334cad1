"""Read the inventory's YAML file; report every problem at once with its path and line."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tasks.errors import ConfigError, InventoryError
from tasks.model.inventory import Inventory

DEFAULT_FILE = "/etc/gbs/inventory.yaml"
MAX_BYTES = 1 << 20
"""Some 1,000 bytes for each of 1,000 clients."""
MAX_DEPTH = 50
MAX_ENTRIES = 200_000
"""Entries after aliases are followed: a few lines of them can stand for more than any machine can hold."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

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
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError("inventory is too large", str(path), f"at most {MAX_BYTES} bytes are read")
        text = content.decode("utf-8-sig")
    except FileNotFoundError as exc:
        raise ConfigError("no inventory", str(path), "write one or set GBS_INVENTORY to its path") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("inventory cannot be read", str(path), str(exc)) from exc
    return _parsed(text, str(path))


def parse(text: str, name: str) -> Inventory:
    """The validated inventory that `text` declares; `name` is what errors call the file."""
    lines: dict[Path_, int] = {}
    try:
        data, twice = _read(text, lines)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise InventoryError(name, [f"{where}not YAML: {getattr(exc, 'problem', None) or exc}"]) from exc
    except RecursionError as exc:
        raise InventoryError(name, ["not YAML that can be read: nested too deeply"]) from exc
    except OverflowError as exc:
        raise InventoryError(name, [str(exc)]) from exc
    problems = [f"line {line}: {dotted(path)}: stands twice" for path, line in twice]
    inventory: Inventory | None
    try:
        inventory = Inventory.model_validate(data)
    except ValidationError as exc:
        errors = exc.errors()
        problems += [_problem(error, lines) for error in errors]
        inventory = _sound_part(data, errors)
    mistakes = inventory.mistakes() if inventory else []
    problems += [f"line {_line(path, lines)}: {dotted(path)}: {text}" for path, text in mistakes]
    if problems or inventory is None:
        raise InventoryError(name, problems)
    return inventory


_parsed = functools.lru_cache(maxsize=1)(parse)
"""The last text is not parsed again: 200 clients take 13 ms, and a night asks 20 times for each of them."""


def dotted(path: Path_) -> str:
    """A path in the file as operators write it."""
    return ".".join(path) or "the whole file"


def _read(text: str, lines: dict[Path_, int]) -> tuple[Any, list[tuple[Path_, int]]]:
    """The data and the keys that stand twice; `lines` is filled with the line of every path.

    Raises YAMLError, RecursionError, and OverflowError when aliases make too much of it.
    """
    _require_shallow(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        twice = list(_index(node, (), lines))
        try:
            data = loader.construct_document(node) if node is not None else None
            return ({} if data is None else data), twice
        except (AttributeError, LookupError, TypeError, ValueError) as exc:
            # PyYAML lets through what int(), date() and its tables say of a value such as 2026-13-45.
            raise yaml.YAMLError(f"a value cannot be read: {exc}") from exc
    finally:
        loader.dispose()


def _require_shallow(text: str) -> None:
    """RecursionError for what libyaml's composer, which recurses in C, would crash the process with."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecursionError


def _sound_part(data: Any, errors: Sequence[Any]) -> Inventory | None:
    """The inventory without the clients and KVM hosts that have errors; None when there are other errors."""
    if any(error["loc"][:1] not in (("clients",), ("kvm_hosts",)) or len(error["loc"]) < 2 for error in errors):
        return None
    wrong = {error["loc"][:2] for error in errors}
    rest = {
        section: {name: system for name, system in value.items() if (section, name) not in wrong}
        if section in ("clients", "kvm_hosts")
        else value
        for section, value in data.items()
    }
    try:
        return Inventory.model_validate(rest)
    except ValidationError:
        return None


def _index(node: yaml.Node | None, path: Path_, lines: dict[Path_, int]) -> Iterator[tuple[Path_, int]]:
    """Fill `lines` with the line of every path; yield the keys that stand twice."""
    if node is None:
        return
    lines.setdefault(path, node.start_mark.line + 1)
    if len(lines) > MAX_ENTRIES:
        raise OverflowError(f"more than {MAX_ENTRIES} entries: aliases stand for too much")
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
