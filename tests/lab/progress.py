"""Progress of long steps: a line at the start, one every few seconds, one at the end with the time taken."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

Say = Callable[[str], None]
_EVERY_S = 5.0


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


@contextlib.contextmanager
def phase(what: str, tell: Say = say) -> Iterator[None]:
    """Tell of a step while its block runs: never silent for longer than 5 s."""
    started = time.monotonic()
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_EVERY_S):
            tell(f"{what}, {time.monotonic() - started:.0f} s")

    tell(f"{what} ...")
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    tell(f"{what}: done in {time.monotonic() - started:.1f} s")
