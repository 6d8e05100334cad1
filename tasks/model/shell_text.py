"""Text of a shell script: names that come from outside are only ever data in it, in code and in comments."""

import re
import textwrap
from collections.abc import Iterable

from tasks.model.names import one_line

WIDTH = 116
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+=,-]+")


def word(text: str) -> str:
    """One word of a command."""
    return text if _PLAIN.fullmatch(text) else "'" + text.replace("'", "'\\''") + "'"


def words(argv: Iterable[str]) -> str:
    """The words of a command."""
    return " ".join(word(text) for text in argv)


def below(variable: str, path: str) -> str:
    """A path below a folder that a variable of the script names."""
    return f'"${variable}"' + (f"/{word(path)}" if path else "")


def comment(text: str) -> str:
    """Lines of comment; nothing in the text begins a line of its own."""
    return "\n".join(f"# {line}" for line in textwrap.wrap(one_line(text), WIDTH, break_long_words=False)) or "#"


def document(name: str, text: str) -> str:
    """The lines of a here-document for a command that stands before it on the line: `cat > file {document}`."""
    end = name
    while end in text.split("\n"):
        end += "_"
    return f"<<'{end}'\n{text}{'' if text.endswith(chr(10)) else chr(10)}{end}"


def step(number: int, title: str, body: str) -> str:
    """A step of a runbook: a line that says what is done, and what does it and proves it."""
    return f"\n\nstep {number} {word(title)}\n{body.strip()}\n"
