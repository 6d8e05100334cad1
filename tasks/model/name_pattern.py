"""What a search for files asks for: a part of a path, or shell wildcards."""

import fnmatch
import re
from dataclasses import dataclass
from functools import cached_property

_WILD = re.compile(r"\[!?\]?[^]]*\]|[*?\[\]]")


@dataclass(frozen=True)
class NamePattern:
    """`*`, `?` and `[…]` are wildcards (`*` stands for slashes too), anything else is a part of a path.

    A pattern with a wildcard and without a slash is compared with names, one with a slash with whole paths from `/`.
    """

    text: str

    @property
    def wild(self) -> bool:
        """Whether it has wildcards."""
        return _WILD.search(self.text) is not None

    @cached_property
    def literals(self) -> tuple[bytes, ...]:
        """Bytes that every path has that it matches, without outer slashes, the longest first."""
        parts = _WILD.split(self.text) if self.wild else [self.text]
        found = {part.strip("/").encode("utf-8", "surrogateescape") for part in parts}
        return tuple(sorted(found - {b""}, key=len, reverse=True))

    def matches(self, path: bytes) -> bool:
        """Whether it means a path, which has no leading slash."""
        whole = b"/" + path
        if not self.wild:
            return self.text.encode("utf-8", "surrogateescape") in whole
        words = whole if "/" in self.text else whole.rpartition(b"/")[2]
        return self._compiled.fullmatch(words.decode("utf-8", "surrogateescape")) is not None

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(fnmatch.translate(self.text))
