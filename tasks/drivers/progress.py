"""Progress of long phases, as log lines that come often enough to be believed and rarely enough to be read."""

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tasks.model.names import human_age, human_bytes

INTERVAL_S = 4.0


class Progress:
    """Logs a phase's advance: bytes done of total, rate and ETA when they are known, elapsed time when not."""

    def __init__(self, logger: logging.Logger, phase: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger, self._phase, self._clock = logger, phase, clock
        self._started = self._logged = clock()
        self._lock = threading.Lock()
        self.done = 0
        self.total: int | None = None
        self.note = ""

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Say how far it is, in bytes; a line is logged at most every INTERVAL_S."""
        self.done, self.total, self.note = done, total or self.total, note or self.note
        self.tick()

    def say(self, note: str) -> None:
        """Say where it is in words, for a phase whose bytes are not counted."""
        self.note = note
        self.tick()

    def tick(self) -> None:
        """Log a line if the last one is old enough."""
        with self._lock:
            if self._clock() - self._logged < INTERVAL_S:
                return
            self._logged = self._clock()
        self._logger.info("%s: %s", self._phase, self.text())

    def text(self) -> str:
        """The line's words."""
        elapsed = self._clock() - self._started
        words = [self.note] if self.note else []
        if self.total and self.done:
            words.append(f"{human_bytes(self.done)} of {human_bytes(self.total)} ({100 * self.done // self.total} %)")
            remaining = elapsed * (self.total - self.done) / self.done
            if self.done < self.total:
                words.append(f"about {human_age(remaining)} left")
        elif self.done:
            words.append(human_bytes(self.done))
        words.append(f"{human_age(elapsed)} so far")
        return ", ".join(words)


@contextmanager
def reporting(logger: logging.Logger, phase: str) -> Iterator[Progress]:
    """A Progress that also speaks by itself while its phase is silent."""
    progress = Progress(logger, phase)
    ended = threading.Event()

    def speak() -> None:
        while not ended.wait(1):
            progress.tick()

    # In the context of the run, or the lines would not reach its log.
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(speak,), daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        ended.set()
        thread.join()
