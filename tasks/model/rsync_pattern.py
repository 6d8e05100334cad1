"""rsync's patterns (rsync(1), "Filter rules"): paths that match themselves alone, and excludes as rules of a file."""

import re

_WILD = re.compile(r"([\[*?\\])")


def literal(path: str, more: str = "") -> str:
    """The pattern that matches this path alone, or with what `more` matches behind it; the root is empty.

    A backslash escapes in a pattern that has a wildcard anywhere, and only there.
    """
    path = path.rstrip("/")
    wild = any(char in path + more for char in "[*?")
    return (_WILD.sub(r"\\\1", path) if wild else path) + more


def exclude_rule(pattern: str) -> str:
    """The rule that `--exclude=PATTERN` means; a pattern may begin with a rule of its own."""
    return pattern if pattern.startswith(("- ", "+ ")) else f"- {pattern}"
