"""Names on disk and identifiers: real names are data, slugs are paths, ids sort by time."""

import hashlib
import re
from datetime import UTC, datetime

ID_FORMAT = "%Y%m%dT%H%M%SZ"
LINE_LENGTH = 500
_UNSAFE = re.compile(r"[^a-z0-9.]+")
_HASHED = re.compile(r"(.*-)?[0-9a-f]{8}")


def slug(name: str) -> str:
    """A path component for any name: itself when it is plain, else its plain letters and a hash that keeps it unique.

    The answer matches `[a-z0-9][a-z0-9.-]*`, is at most 72 characters long, and two names never share one.
    """
    plain = _UNSAFE.sub("-", name.lower()).strip("-.")[:63].strip("-.")
    # A plain name that looks like one of our hashed ones is hashed too, or it would be the slug of another name.
    if plain and plain == name and not _HASHED.fullmatch(plain):
        return plain
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain}-{digest}" if plain else digest


def new_id(now: datetime) -> str:
    """An id for something made at `now` (aware): UTC to the second, sortable as text."""
    return now.astimezone(UTC).strftime(ID_FORMAT)


def time_of_id(text: str) -> datetime:
    """The time an id was made; ValueError when it is not one of ours."""
    time = datetime.strptime(text, ID_FORMAT).replace(tzinfo=UTC)
    if new_id(time) != text:  # strptime takes single digits too
        raise ValueError(f"{text!r} is not an id")
    return time


def human_bytes(size_bytes: float) -> str:
    """A size for people: three digits and a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def human_age(seconds: float) -> str:
    """An age or duration for people: its two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    for unit, size, lower, lower_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // lower_size
            return f"{whole // size} {unit} {rest} {lower}" if rest else f"{whole // size} {unit}"
    raise AssertionError(seconds)


def one_line(text: str) -> str:
    """Text of a client's as one line for people: what cannot be printed is escaped, what is long is cut."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return shown if len(shown) <= LINE_LENGTH else f"{shown[:LINE_LENGTH]} … ({len(text)} characters)"
