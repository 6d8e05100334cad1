"""What a window is expected to cost."""

from tasks.model.window_budget import DEFAULT_BYTES_PER_S, expect

GIB = 1 << 30


def test_copy_takes_as_long_as_the_last_one_did_per_byte() -> None:
    budget = expect(10 * GIB, 1 << 20, 0, 10 * GIB)
    assert (budget.copy_s, budget.overlay_bytes) == (10240, 0)


def test_without_a_last_copy_a_slow_one_is_expected() -> None:
    assert expect(GIB, None, 0, GIB).copy_s == GIB / DEFAULT_BYTES_PER_S


def test_overlay_holds_twice_what_the_guest_writes_meanwhile_but_never_more_than_the_disk() -> None:
    assert expect(100, 10, 7, GIB).overlay_bytes == 140
    assert expect(100, 1, 1 << 40, GIB).overlay_bytes == GIB
