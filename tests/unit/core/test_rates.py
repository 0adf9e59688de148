"""Windows of rates, against an oracle that remembers every start."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.core.rates import STEPS, RateWindow
from flock_ray.core.wire import Rate


def drive(rate: Rate, gaps: list[tuple[int, int]]) -> list[int]:
    """Let as many start as may, or as are there, after each gap; returns the times of the starts."""
    window, now_us, starts = RateWindow(), 1_767_225_600_000_000, list[int]()
    for gap_us, wanted in gaps:
        now_us += gap_us
        for _ in range(min(wanted, max(0, window.allowance(rate, now_us)))):
            window.take(rate, now_us)
            starts.append(now_us)
    return starts


def most_in_any_window(starts: list[int], per_us: int) -> int:
    return max((sum(first <= at < first + per_us for at in starts) for first in starts), default=0)


gaps = st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 120)), max_size=25)


@given(limit=st.integers(1, 200), per_us=st.integers(1, 10_000), gaps=gaps)
@settings(max_examples=80, deadline=None)
def test_no_window_has_more_starts_than_the_limit(
    limit: int, per_us: int, gaps: list[tuple[int, int]]
) -> None:
    assert most_in_any_window(drive(Rate(limit, per_us), gaps), per_us) <= limit


@given(limit=st.integers(1, STEPS), per_us=st.integers(1, 10_000), gaps=gaps)
@settings(max_examples=80, deadline=None)
def test_up_to_a_hundred_starts_are_let_through_as_early_as_the_limit_allows(
    limit: int, per_us: int, gaps: list[tuple[int, int]]
) -> None:
    now_us, expected = 1_767_225_600_000_000, list[int]()
    for gap_us, wanted in gaps:
        now_us += gap_us
        room = limit - sum(at > now_us - per_us for at in expected)
        expected += [now_us] * min(wanted, max(0, room))

    assert expected == drive(Rate(limit, per_us), gaps)


@given(limit=st.integers(1, 200), per_us=st.integers(1, 10_000), gaps=gaps)
@settings(max_examples=80, deadline=None)
def test_it_says_exactly_when_the_next_one_may_start(
    limit: int, per_us: int, gaps: list[tuple[int, int]]
) -> None:
    rate, window, now_us = Rate(limit, per_us), RateWindow(), 1_000_000
    for gap_us, wanted in gaps:
        now_us += gap_us
        for _ in range(min(wanted, max(0, window.allowance(rate, now_us)))):
            window.take(rate, now_us)
        free_us = window.free_us(rate, now_us)
        assert now_us <= free_us <= now_us + per_us
        assert window.allowance(rate, free_us) > 0
        if free_us > now_us:
            assert window.allowance(rate, free_us - 1) <= 0


@given(limit=st.integers(STEPS + 1, 10_000), gaps=st.lists(st.integers(0, 400), min_size=300, max_size=500))
@settings(max_examples=3, deadline=None)
def test_memory_does_not_grow_with_the_limit(limit: int, gaps: list[int]) -> None:
    rate, window, now_us = Rate(limit, 10_000), RateWindow(), 0
    for gap_us in gaps:
        now_us += gap_us
        if window.allowance(rate, now_us) > 0:
            window.take(rate, now_us)
        assert len(window.steps) <= STEPS + 2


def test_with_a_high_limit_a_place_is_free_at_most_a_hundredth_of_the_window_late() -> None:
    rate = Rate(1_000, 100_000)
    window = RateWindow()
    for _ in range(999):
        window.take(rate, 0)
    window.take(rate, 999)

    assert 100_999 == window.free_us(rate, 50_000)
    assert 1_000 == window.allowance(rate, 100_999)


def test_a_clock_that_was_set_back_shortens_no_window() -> None:
    rate, window = Rate(1, 1_000), RateWindow()
    window.take(rate, 5_000)

    window.take(rate, 3_000)  # as after a deploy that raised the limit for a moment

    assert 6_000 == window.free_us(rate, 4_500)


def test_what_started_before_a_deploy_counts_under_the_new_rate() -> None:
    window = RateWindow()
    for at in range(0, 1_000, 100):
        window.take(Rate(10, 1_000), at)

    lower = Rate(2, 500)

    assert -3 == lower.limit - sum(at > 900 - 500 for at in range(0, 1_000, 100))
    assert -3 == window.allowance(lower, 900)
    assert 800 + 500 == window.free_us(lower, 900)


def test_it_is_idle_when_its_last_start_has_left_the_window() -> None:
    rate, window = Rate(3, 1_000), RateWindow()
    assert window.idle(rate, 0)
    window.take(rate, 10)

    assert not window.idle(rate, 1_009)
    assert window.idle(rate, 1_010)


def test_it_comes_back_from_a_snapshot_as_it_was() -> None:
    rate, window = Rate(5, 1_000), RateWindow()
    for at in (1, 2, 3):
        window.take(rate, at)

    again = msgspec.msgpack.decode(msgspec.msgpack.encode(window), type=RateWindow)

    assert window == again
