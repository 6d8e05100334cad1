"""Facts: the operating system and its packages, memory and processors."""

import re


def parse_os_release(text: str) -> dict[str, str]:
    """The assignments of /etc/os-release, unquoted (os-release(5))."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, value in pairs}


def parse_packages(text: str) -> tuple[str, ...]:
    """Sorted `name version` lines."""
    return tuple(sorted(line.strip() for line in text.splitlines() if line.strip()))


def parse_word(text: str) -> str:
    """An answer of one line."""
    return text.strip()


def parse_memory(text: str) -> int | None:
    """The bytes of memory that the kernel has, from the line MemTotal of /proc/meminfo."""
    found = re.search(r"^MemTotal: +([0-9]{1,18}) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def parse_processors(text: str) -> int | None:
    """How many processors nproc counts."""
    return int(text) if re.fullmatch("[0-9]{1,9}\n?", text) else None
