"""Facts: the operating system and its packages."""


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
