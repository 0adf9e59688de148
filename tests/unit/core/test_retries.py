from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # ships no types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flock_ray.core.retries import (
    MAX_DELAY,
    STEPS,
    ExponentialBackoff,
    FixedDelay,
    LinearBackoff,
    RetryBudget,
    RetryPolicy,
    RetryStrategy,
    RetryWindow,
)
from flock_ray.core.wire import RetrySpec
from flock_ray.errors import (
    ConfigurationError,
    ModelAnswerError,
    ModelRequestError,
    PayloadTooLargeError,
    RateLimitError,
)

SECOND = timedelta(seconds=1)
OOPS = RuntimeError("oops")


def delays(strategy: RetryStrategy, count: int) -> list[float]:
    waits = [strategy.delay(attempt, OOPS) for attempt in range(1, count + 1)]
    return [wait.total_seconds() for wait in waits if wait is not None]


def test_an_exponential_backoff_grows_by_its_factor_up_to_its_maximum() -> None:
    strategy = ExponentialBackoff(SECOND, timedelta(seconds=10), multiplier=3)

    assert [1, 3, 9, 10, 10] == delays(strategy, 5)


def test_a_linear_backoff_grows_by_its_increment_up_to_its_maximum() -> None:
    strategy = LinearBackoff(SECOND, timedelta(seconds=4), timedelta(seconds=10))

    assert [1, 5, 9, 10, 10] == delays(strategy, 5)


def test_a_fixed_delay_stays() -> None:
    assert [2, 2, 2] == delays(FixedDelay(2 * SECOND, 3), 3)
    assert [0] == delays(FixedDelay(timedelta(0)), 1)


@pytest.mark.parametrize("attempt", [10_000, 10**9])
@pytest.mark.parametrize(
    "strategy",
    [ExponentialBackoff(multiplier=1000), ExponentialBackoff(max_delay=MAX_DELAY), LinearBackoff()],
    ids=repr,
)
def test_no_number_of_failures_is_too_large(strategy: Any, attempt: int) -> None:
    assert strategy.delay(attempt, OOPS) == strategy.max_delay


@pytest.mark.parametrize(
    "declare",
    [
        lambda: ExponentialBackoff(initial_delay=-SECOND),
        lambda: ExponentialBackoff(initial_delay=timedelta(0)),
        lambda: ExponentialBackoff(initial_delay=5),  # type: ignore[arg-type]
        lambda: ExponentialBackoff(initial_delay=2 * SECOND, max_delay=SECOND),
        lambda: ExponentialBackoff(max_delay=timedelta(days=400)),
        lambda: ExponentialBackoff(max_attempts=0),
        lambda: ExponentialBackoff(max_attempts=True),
        lambda: ExponentialBackoff(max_attempts=2.0),  # type: ignore[arg-type]
        lambda: ExponentialBackoff(multiplier=0.5),
        lambda: ExponentialBackoff(multiplier=float("nan")),
        lambda: ExponentialBackoff(multiplier=float("inf")),
        lambda: LinearBackoff(increment=-SECOND),
        lambda: LinearBackoff(max_attempts=-1),
        lambda: FixedDelay(-SECOND),
        lambda: FixedDelay(SECOND, 0),
        lambda: RetryBudget(ratio=0),
        lambda: RetryBudget(ratio=1.5),
        lambda: RetryBudget(ratio=True),
        lambda: RetryBudget(window=timedelta(0)),
        lambda: RetryBudget(min_retries=-1),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_declared(declare: Any) -> None:
    with pytest.raises(ConfigurationError):
        declare()


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_full_jitter_stays_between_zero_and_the_delay(attempt: int, drawn: float) -> None:
    policy = RetryPolicy(ExponentialBackoff(SECOND, timedelta(minutes=5)), 3)

    after_us = policy.delay_us(attempt, OOPS, draw=lambda: drawn)

    assert after_us is not None
    assert 0 <= after_us <= min(2 ** min(attempt - 1, 20), 300) * 1_000_000


def test_without_jitter_no_random_number_is_drawn() -> None:
    def draw() -> float:
        raise AssertionError

    policy = RetryPolicy(FixedDelay(SECOND), 3)

    assert policy.delay_us(1, OOPS, draw=draw) == 1_000_000
    assert policy.delay_us(1, OOPS, draw=draw, asked_s=30) == 30_000_000
    assert policy.delay_us(1, OOPS, draw=draw, asked_s=0.5) == 1_000_000


def test_a_wait_that_a_server_asked_for_is_spread_but_never_shortened() -> None:
    policy = RetryPolicy(ExponentialBackoff(), 3)

    assert policy.delay_us(1, OOPS, draw=lambda: 0.0, asked_s=30) == 30_000_000
    assert policy.delay_us(1, OOPS, draw=lambda: 0.5, asked_s=30) == 31_500_000


class Own:
    def __init__(self, *waits: Any, **attributes: Any) -> None:
        self.waits = waits
        vars(self).update(attributes)

    def delay(self, attempt: int, error: BaseException) -> timedelta | None:
        wait: timedelta | None = self.waits[attempt - 1]
        return wait


def test_a_strategy_of_ones_own_may_end_the_attempts_and_ask_for_jitter() -> None:
    policy = RetryPolicy(Own(SECOND, None, -SECOND, timedelta.max, jitter=True), 3)

    assert policy.delay_us(1, OOPS, draw=lambda: 0.25) == 250_000
    assert policy.delay_us(2, OOPS, draw=lambda: 0.25) is None
    assert policy.delay_us(3, OOPS, draw=lambda: 0.25) == 0
    assert policy.delay_us(4, OOPS, draw=lambda: 1.0) == MAX_DELAY // timedelta(microseconds=1)


def test_a_strategy_of_ones_own_that_returns_anything_else_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"delay\(\) of Own returned 5, which is no timedelta"):
        RetryPolicy(Own(5), 3).delay_us(1, OOPS, draw=lambda: 0.5)


@pytest.mark.parametrize(
    "error",
    [PayloadTooLargeError(), ModelAnswerError(), ModelRequestError(), ConfigurationError()],
    ids=lambda e: type(e).__name__,
)
def test_some_errors_are_never_tried_again_whatever_on_says(error: Exception) -> None:
    from flock_ray.core.error_filters import error_filter

    policy = RetryPolicy(FixedDelay(SECOND), 3, error_filter(Exception, "here"))

    assert not policy.wants(error, retryable=True)
    assert not policy.wants(ExceptionGroup("two", [RateLimitError(), error]), retryable=True)
    assert policy.wants(ExceptionGroup("two", [RateLimitError(), OOPS]), retryable=False)


def test_shards_get_the_numbers_of_a_policy() -> None:
    budget = RetryBudget(0.5, timedelta(seconds=30), 2)

    assert RetryPolicy(FixedDelay(SECOND), 4).spec() == RetrySpec(4)
    assert RetryPolicy(FixedDelay(SECOND), 4, budget=budget).spec() == RetrySpec(4, 0.5, 30_000_000, 2)


def test_the_digest_of_a_policy_is_its_settings_and_the_same_in_every_process() -> None:
    def digest(**changes: Any) -> bytes:
        return RetryPolicy(Own(SECOND, thing=object(), **changes), 3).digest()

    assert digest(max_attempts=2) == digest(max_attempts=2) != digest(max_attempts=3)
    assert RetryPolicy(FixedDelay(SECOND), 3).digest() != RetryPolicy(FixedDelay(2 * SECOND), 3).digest()


@pytest.mark.parametrize(
    "strategy",
    [FixedDelay(SECOND, jitter=True), LinearBackoff(), ExponentialBackoff(), Own(SECOND, max_attempts=2)],
    ids=lambda strategy: type(strategy).__name__,
)
def test_a_policy_travels_to_workers_as_it_is(strategy: Any) -> None:
    policy = RetryPolicy(strategy, 3, budget=RetryBudget())

    travelled = cloudpickle.loads(cloudpickle.dumps(policy))

    assert travelled.digest() == policy.digest()
    assert travelled.strategy.delay(1, OOPS) == SECOND
    assert len(policy.functions()) == 1


def test_a_strategy_may_be_any_object_that_has_a_delay() -> None:
    strategy: Any = SimpleNamespace(delay=lambda attempt, error: SECOND)
    policy = RetryPolicy(strategy, 3)

    assert policy.digest()
    assert policy.functions() == [policy.strategy.delay]


# --- the budget -----------------------------------------------------------------------------------

SPEC = RetrySpec(5, 0.5, 1_000_000, 2)


def test_a_budget_allows_its_minimum_and_its_share_of_first_attempts() -> None:
    window = RetryWindow()

    taken = [window.take(SPEC, 0) for _ in range(4)]
    for _ in range(10):
        window.note_first(SPEC, 0)
    taken += [window.take(SPEC, 0) for _ in range(4)]

    assert [True, True, False, False, True, True, True, False] == taken


def test_a_window_that_is_over_is_forgotten() -> None:
    window = RetryWindow()
    assert [True, True, False] == [window.take(SPEC, 0) for _ in range(3)]

    assert not window.take(SPEC, 1_000_000)
    assert window.take(SPEC, 1_100_000)


def test_without_a_budget_everything_is_allowed_and_nothing_is_counted() -> None:
    window = RetryWindow()

    assert all(window.take(RetrySpec(5), 0) for _ in range(1000))
    assert window.steps == []


EVENTS = st.lists(st.tuples(st.integers(0, 400_000), st.booleans()), max_size=300)


@given(EVENTS)
def test_a_budget_is_never_exceeded_in_any_window(events: list[tuple[int, bool]]) -> None:
    window, now = RetryWindow(SPEC.budget_window_us), 0
    firsts: list[int] = []
    retries: list[int] = []
    width = SPEC.budget_window_us // STEPS
    for step, is_retry in events:
        now += step
        if not is_retry:
            window.note_first(SPEC, now)
            firsts.append(now)
        elif window.take(SPEC, now):
            retries.append(now)
            recent = [t for t in retries if t > now - SPEC.budget_window_us]
            known = [t for t in firsts if t > now - SPEC.budget_window_us - 2 * width]
            assert len(recent) <= max(SPEC.budget_min, int(SPEC.budget_ratio * len(known)))
        else:
            old = [t for t in retries if t > now - SPEC.budget_window_us - 2 * width]
            assert len(old) >= SPEC.budget_min
        assert len(window.steps) <= STEPS + 2


@given(EVENTS, st.integers(1, 10**10))
def test_another_window_keeps_what_was_counted(events: list[tuple[int, bool]], other_us: int) -> None:
    window, now = RetryWindow(), 0
    for step, _ in events:
        now += step
        window.note_first(SPEC, now)
        assert len(window.steps) <= STEPS + 2
    before = sum(step[1] for step in window.steps)
    window._resize(other_us)

    assert before == sum(step[1] for step in window.steps)
    assert window.steps == sorted(window.steps)


def test_a_clock_that_was_set_back_counts_into_the_newest_step() -> None:
    window = RetryWindow(1_000_000)
    window.note_first(SPEC, 5_000_000)
    window.note_first(SPEC, 1_000_000)

    assert [(5_000_000, 2, 0)] == window.steps
