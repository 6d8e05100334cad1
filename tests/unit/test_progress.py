"""Progress: often enough to be believed, rarely enough to be read."""

from __future__ import annotations

import logging

import pytest

from tasks.drivers.progress import INTERVAL_S, Progress, reporting

log = logging.getLogger("gbs.test_progress")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(caplog: pytest.LogCaptureFixture) -> Clock:
    caplog.set_level(logging.INFO, log.name)
    return Clock()


def test_line_is_logged_at_most_every_interval(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress(log, "pull web1", clock)
    for step in range(100):
        clock.now = 1000 + step * INTERVAL_S / 10
        progress.update(step)
    assert len(caplog.records) == 9
    assert caplog.messages[0].startswith("pull web1: 10 B")


def test_line_says_done_total_and_what_is_left(clock: Clock) -> None:
    progress = Progress(log, "copy", clock)
    clock.now += 60
    progress.update(256 << 20, 1 << 30)
    assert progress.text() == "256.0 MiB of 1.0 GiB (25 %), about 3 min left, 1 min so far"
    progress.update(1 << 30)
    assert progress.text() == "1.0 GiB of 1.0 GiB (100 %), 1 min so far"


def test_line_without_total_says_what_is_known(clock: Clock) -> None:
    progress = Progress(log, "copy", clock)
    clock.now += 5
    assert progress.text() == "5.0 s so far"
    progress.update(2048, note="vda")
    assert progress.text() == "vda, 2.0 KiB, 5.0 s so far"
    progress.update(4096, 0)
    assert progress.text() == "vda, 4.0 KiB, 5.0 s so far"
    progress.say("vdb")
    assert progress.text().startswith("vdb, ")


def test_silent_phase_ends_its_thread_even_when_it_fails() -> None:
    import threading

    before = threading.active_count()
    with pytest.raises(RuntimeError), reporting(log, "quiet"):
        raise RuntimeError
    assert threading.active_count() == before
