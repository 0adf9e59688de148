"""The pace of a redrive: so many letters a second, also when the steps take longer than they should."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flock_ray.letters.redriving import CATCH_UP_S, MAX_BATCH, Pace


def redriven(rate: float, step_s: list[float], until_s: float) -> list[tuple[float, int]]:
    """Redrive in steps that take so long, in turn; returns when how many went."""
    now, gone = 100.0, list[tuple[float, int]]()
    pace, step = Pace(rate, now), 0
    while now < 100.0 + until_s:
        if (wait_s := pace.wait_s(now)) > 0:
            now += wait_s
            continue
        count = pace.due(now)
        pace.took(count)
        gone.append((now, count))
        now += step_s[step % len(step_s)]
        step += 1
    return gone


@pytest.mark.parametrize("rate", [0.5, 1, 7, 50, 900])
@pytest.mark.parametrize("step_s", [0.0, 0.01, 0.099])
def test_a_rate_is_kept_in_even_steps_when_the_board_is_quick(rate: float, step_s: float) -> None:
    gone = redriven(rate, [step_s], 20)
    assert abs(sum(count for _, count in gone) - 20 * rate) <= max(1, rate * 0.1) + 1
    assert max(count for _, count in gone) <= max(1, rate * 0.1) + 1


def test_a_rate_is_kept_when_every_step_takes_longer_than_it_should() -> None:
    """50 letters a second were once 34 when a step of 5 took 147 ms: it waited for each and made up for nothing."""
    gone = redriven(50, [0.147], 20)
    assert sum(count for _, count in gone) == pytest.approx(1_000, rel=0.02)
    assert max(count for _, count in gone) <= 9


def test_what_a_long_stop_held_up_comes_as_no_more_than_a_second_at_once() -> None:
    gone = redriven(50, [*[0.01] * 20, 30.0, *[0.01] * 10_000], 40)
    [behind] = [i for i, (at, _) in enumerate(gone) if i and at - gone[i - 1][0] > 29]
    assert gone[behind][1] <= 50 * CATCH_UP_S
    assert all(count <= 6 for _, count in gone[behind + 1 :])


@given(st.floats(0.01, 10_000), st.lists(st.floats(0.0, 5.0), min_size=1, max_size=20))
def test_no_second_has_more_than_its_share_and_what_is_made_up_for(rate: float, step_s: list[float]) -> None:
    gone = redriven(rate, step_s, min(30.0, 300 / rate))
    for begin, _ in gone:
        within = sum(count for at, count in gone if begin <= at < begin + 1.0)
        assert within <= rate * (1.0 + CATCH_UP_S) + max(1, rate * 0.1) + 2
    assert all(1 <= count <= MAX_BATCH for _, count in gone)
