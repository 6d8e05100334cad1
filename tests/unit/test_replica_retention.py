"""Which replicas of images stay: what is promised holds over hundreds of nights of luck and failure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.model.names import new_id, time_of_id
from tasks.model.replica_retention import Replica, judge, why_unsound
from tasks.model.retention import Pin

START = datetime(2026, 1, 1, 2, tzinfo=UTC)


def image(day: int, flavour: str = "f1", **changed: object) -> Replica:
    made = new_id(START + timedelta(days=day))
    return replace(Replica(made, f"_images/kvm1/web1/{made}", flavour), **changed)  # type: ignore[arg-type]


def days(replicas: list[Replica]) -> list[int]:
    return [(time_of_id(one.id) - START).days for one in replicas]


def stays(replicas: list[Replica], count: int, flavours: set[str], doubt: str | None = None) -> list[int]:
    return days([one.replica for one in judge(replicas, count, flavours, START, doubt) if one.stays])


class Years:
    """A VM's images, their replicas, the layouts of the nights that are kept, and a clock."""

    def __init__(self, seed: int) -> None:
        self.random, self.day = Random(seed), 0
        self.there: list[Replica] = []
        self.flavour, self.nights = "f0", list[str]()

    @property
    def now(self) -> datetime:
        return START + timedelta(days=self.day)

    def chance(self, of: float) -> bool:
        return self.random.random() < of

    def change(self, **changed: object) -> None:
        """Something happens to one of them."""
        one = self.random.choice(self.there)
        self.there[self.there.index(one)] = replace(one, **changed)  # type: ignore[arg-type]

    def live(self) -> None:
        """A day on which anything may happen."""
        self.day += 1
        if self.chance(0.03):
            self.flavour = f"f{self.random.randrange(4)}"
        if self.chance(0.9):
            self.nights = [*self.nights, self.flavour][-20:]
        if self.chance(0.3):
            self.there.append(image(self.day, self.random.choice([self.flavour, self.flavour, ""])))
        if not self.there:
            return
        if self.chance(0.1):
            self.change(read=self.now, damaged=())
        if self.chance(0.03):
            self.change(hurt=self.now, damaged=("vda.raw",))
        if self.chance(0.03):
            self.change(hurt=self.now, read=self.now, damaged=())
        if self.chance(0.01):
            self.change(flavour=None)
        if self.chance(0.05):
            self.change(pin=Pin(night="", until=self.now.date() + timedelta(days=20), reason="audit"))
        if self.chance(0.01):
            self.there.remove(self.random.choice(self.there))

    def sound(self) -> list[Replica]:
        hurt = max((one.hurt for one in self.there if one.hurt), default=None)
        return [one for one in self.there if why_unsound(one, hurt) is None]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 5))
def test_over_hundreds_of_days_the_promises_hold(seed: int, count: int) -> None:
    site = Years(seed)
    for _ in range(100):
        site.live()
        before, sound = list(site.there), site.sound()
        verdicts = judge(before, count, set(site.nights), site.now)
        site.there = [one.replica for one in verdicts if one.stays]
        assert sorted(one.replica.place for one in verdicts) == sorted(one.place for one in before)
        assert all(one.reason for one in verdicts)
        kept = {one.place for one in site.there}
        newest = sorted(sound, key=lambda one: one.id, reverse=True)
        assert {one.place for one in newest[:count]} <= kept, "the newest sound ones stay"
        if before:
            assert max(before, key=lambda one: one.id).place in kept
        for flavour in site.nights:
            for among in (sound, [one for one in before if one.flavour is not None]):
                fitting = [one for one in among if one.flavour in ("", flavour)]
                if fitting:
                    left = [one for one in fitting if one.place in kept]
                    assert left, "every night that could be recovered still can be"
        assert all(one.place in kept for one in before if one.pin and one.pin.holds(site.now))
        unread = [one for one in before if one.flavour is None]
        assert all(one.place in kept for one in unread)


def test_it_does_not_fill_for_ever() -> None:
    there: list[Replica] = []
    for day in range(400):
        there = [one.replica for one in judge([*there, image(day)], 3, {"f1"}, START) if one.stays]
    assert days(there) == [399, 398, 397]


def test_what_is_not_sound_is_not_counted() -> None:
    hurt = START + timedelta(days=9)
    there = [image(1), image(2), image(3, damaged=("vda.raw",), hurt=START)]
    assert stays(there, 2, set()) == [3, 2, 1], "and those beside it were not read since"
    there = [image(0, read=START), image(1, read=START), image(2, read=START), there[2]]
    assert stays(there, 2, set()) == [3, 2, 1]
    assert stays([image(0), image(1, read=hurt), image(2, read=hurt, hurt=hurt)], 2, set()) == [2, 1]
    assert stays([image(0), image(1), image(2, read=hurt, hurt=hurt)], 2, set()) == [2, 1, 0]


def test_an_old_layout_stays_as_long_as_a_night_has_it() -> None:
    there = [image(0), image(1), image(2, "f2"), image(3, "f2")]
    assert stays(there, 1, {"f1", "f2"}) == [3, 1]
    assert stays(there, 1, {"f2"}) == [3]
    assert stays([image(0), image(1), image(2, "")], 1, {"f1", "f2"}) == [2], "an image without a layout fits any"


def test_a_pin_keeps_one_until_its_day() -> None:
    pin = Pin(night="", until=date(2026, 1, 3), reason="audit")
    there = [image(0, pin=pin), image(1), image(2)]
    (kept,) = [one for one in judge(there, 1, set(), START) if one.replica.pin]
    assert kept.next == "stays: pinned until 2026-01-03: audit"
    assert not judge(there, 1, set(), START + timedelta(days=3))[-1].stays


def test_an_old_image_without_a_replica_gets_none() -> None:
    there = [image(0, there=False), image(1, there=False), image(2)]
    assert [one.next for one in judge(there, 2, set(), START)] == [
        "stays: the newest 2 that are sound are kept",
        "is made: the newest 2 that are sound are kept",
        "is not made: 2 newer ones are sound",
    ]
    assert stays(there, 1, set(), "the clock is in doubt") == [2], "and a doubt makes none that nobody wants"
    assert stays([image(0), image(1)], 1, set(), "the clock is in doubt") == [1, 0]
