"""Names on disk: slugs that never clash, ids that sort, numbers for people."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.model.names import LINE_LENGTH, human_age, human_bytes, new_id, one_line, slug, time_of_id

FAST = settings(max_examples=60, deadline=None)
NAMES = st.one_of(
    st.text(st.characters(codec=None), max_size=90),
    st.text(alphabet="ab.-A_ /0123456789abcdef", max_size=80),
)
HOSTILE = ["-rf", "--help", "a;b", "a$(id)", "<x>", "..", ".", "", "/", "../../etc", "a/b", "a\0b", "é", "\udcff", " a"]


@pytest.mark.parametrize("name", [*HOSTILE, "x" * 500, "X" * 500, "." * 80, "-" * 80])
def test_slug_of_hostile_name_is_a_plain_path_component(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", slug(name))
    assert len(slug(name)) <= 72


@pytest.mark.parametrize("name", ["web1", "db-2.example.org", "9", "a.b-c", "x" * 63])
def test_slug_of_plain_name_is_the_name(name: str) -> None:
    assert slug(name) == name


@FAST
@given(NAMES)
def test_slug_matches_its_pattern_and_length(name: str) -> None:
    made = slug(name)
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", made)
    assert not made.endswith((".", "-"))
    assert len(made) <= 72


@FAST
@given(NAMES, NAMES)
@example("Web", "web")
@example("web 1", "web-1")
@example("a", "a.")
def test_slug_of_two_names_differs(one: str, other: str) -> None:
    assert (slug(one) == slug(other)) == (one == other)


@FAST
@given(NAMES)
@example("Web1")
def test_slug_of_another_names_slug_is_not_that_slug(name: str) -> None:
    """A VM called `web1-5f0d9d3f` shared the folder of the VM `Web1`."""
    made = slug(name)
    assert slug(made) != made or made == name


@FAST
@given(st.integers(0, 1 << 33).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)))
def test_id_is_the_time_to_the_second(when: datetime) -> None:
    assert time_of_id(new_id(when + timedelta(milliseconds=7))) == when
    assert new_id(when) < new_id(when + timedelta(seconds=1))


def test_id_of_another_zone_is_utc() -> None:
    assert new_id(datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))) == "20260228T233000Z"


@pytest.mark.parametrize(
    "text", ["", "20260230T000000Z", "2026-01-01", "2026111T010203Z", "20260101T000000z", "daily.0"]
)
def test_time_of_id_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an id|does not match|day is out|unconverted"):
        time_of_id(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (6442450944, "6.0 GiB"),
        (5 << 40, "5.0 TiB"),
        (5000 << 40, "5000.0 TiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_human_bytes_cases(size_bytes: int, text: str) -> None:
    assert human_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h"),
        (3660, "1 h 1 min"),
        (86400, "1 d"),
        (86460, "1 d"),
        (90000, "1 d 1 h"),
    ],
)
def test_human_age_cases(seconds: float, text: str) -> None:
    assert human_age(seconds) == text


@FAST
@given(st.floats(min_value=0, max_value=1e10))
def test_human_age_of_any_duration_has_words(seconds: float) -> None:
    assert human_age(seconds).endswith(("s", "min", "h", "d"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("/srv/übung 日本", "/srv/übung 日本"),
        ("a\nb\tc\x1b[2Jd", "a\\nb\\tc\\x1b[2Jd"),
        ("\udcff\u2028\u202e", "\\udcff\\u2028\\u202e"),
        ("", ""),
    ],
)
def test_line_shows_what_cannot_be_printed_escaped(text: str, line: str) -> None:
    assert one_line(text) == line


def test_line_that_is_too_long_is_cut_and_says_how_long_it_was() -> None:
    assert one_line("x" * LINE_LENGTH) == "x" * LINE_LENGTH
    assert one_line("x" * 9_000) == "x" * LINE_LENGTH + " … (9000 characters)"
