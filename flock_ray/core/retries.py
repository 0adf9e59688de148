"""When a failed attempt is made again: strategies, and the budget that keeps an outage from becoming a storm. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

import msgspec

from flock_ray.core.error_filters import ErrorFilter, leaves
from flock_ray.core.wire import RetrySpec
from flock_ray.errors import (
    AccessError,
    ApprovalError,
    ArtifactError,
    BudgetExceededError,
    ConfigurationError,
    ModelAnswerError,
    ModelRequestError,
    NoEngineError,
)

__all__ = [
    "NEVER_RETRIED",
    "ExponentialBackoff",
    "FixedDelay",
    "LinearBackoff",
    "RetryBudget",
    "RetryPolicy",
    "RetryStrategy",
    "RetryWindow",
]

DEFAULT_ATTEMPTS = 3
MAX_ATTEMPTS = 1_000_000
MAX_DELAY = timedelta(days=365)
SPREAD = 0.1
"""Runs that a server asked to wait don't come back all at once: they wait up to so much longer."""

NEVER_RETRIED = (
    AccessError,
    ApprovalError,
    ArtifactError,
    BudgetExceededError,
    ConfigurationError,
    ModelAnswerError,
    ModelRequestError,
    NoEngineError,
)
"""Errors that another attempt on the same input would meet again, whatever `on=` says."""

STEPS = 10
"""A window is counted in so many steps: what happened in it is forgotten up to 10 % of the window late."""

_MICROSECOND = timedelta(microseconds=1)
_PLAIN = (str, int, float, timedelta, type(None))


@runtime_checkable
class RetryStrategy(Protocol):
    """How long to wait before the next attempt; any object with this method will do.

    It may have two attributes: `max_attempts` (attempts in all, the first one included), and `jitter`: with True the
    wait is a random time between zero and what `delay` returned.
    """

    def delay(self, attempt: int, error: BaseException) -> timedelta | None:
        """Return the wait after a failure; None: no further attempt.

        Called in the worker, from any thread. If it raises, there is no further attempt.

        Args:
            attempt: Number of the attempt that failed, from 1.
            error: What it raised.
        """
        ...


@dataclass(frozen=True, slots=True)
class ExponentialBackoff:
    """Waits that grow by a factor: 1 s, 2 s, 4 s, and so on up to `max_delay`."""

    initial_delay: timedelta = timedelta(seconds=1)
    """After the first failure."""
    max_delay: timedelta = timedelta(minutes=5)
    jitter: bool = True
    """Wait a random time between zero and the delay, so that many failures don't come back together."""
    max_attempts: int = DEFAULT_ATTEMPTS
    """Attempts in all, the first one included."""
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check_delays("ExponentialBackoff", self.initial_delay, self.max_delay)
        check_attempts("ExponentialBackoff", self.max_attempts)
        if not _is_number(self.multiplier) or not 1 <= self.multiplier <= 1000:
            raise ConfigurationError(
                f"ExponentialBackoff(multiplier={self.multiplier!r}): give a number from 1 to 1000."
            )

    def delay(self, attempt: int, error: BaseException | None = None) -> timedelta:
        """Return the wait after a failed attempt, before jitter."""
        try:
            return min(self.initial_delay * float(self.multiplier) ** max(0, attempt - 1), self.max_delay)
        except OverflowError:
            return self.max_delay


@dataclass(frozen=True, slots=True, init=False)
class FixedDelay:
    """The same wait after every failure."""

    wait: timedelta
    max_attempts: int
    """Attempts in all, the first one included."""
    jitter: bool
    """Wait a random time between zero and the delay."""

    def __init__(
        self, delay: timedelta, max_attempts: int = DEFAULT_ATTEMPTS, *, jitter: bool = False
    ) -> None:
        """Wait for `delay`, which may be zero, and make so many attempts in all."""
        _check_delay("FixedDelay(delay=...)", delay, zero=True)
        check_attempts("FixedDelay", max_attempts)
        for name, value in (("wait", delay), ("max_attempts", max_attempts), ("jitter", bool(jitter))):
            object.__setattr__(self, name, value)

    def delay(self, attempt: int, error: BaseException | None = None) -> timedelta:
        """Return the wait after a failed attempt, before jitter."""
        return self.wait


@dataclass(frozen=True, slots=True)
class LinearBackoff:
    """Waits that grow by the same time: 1 s, 2 s, 3 s, and so on up to `max_delay`."""

    initial_delay: timedelta = timedelta(seconds=1)
    """After the first failure."""
    increment: timedelta = timedelta(seconds=1)
    max_delay: timedelta = timedelta(minutes=5)
    jitter: bool = True
    """Wait a random time between zero and the delay, so that many failures don't come back together."""
    max_attempts: int = DEFAULT_ATTEMPTS
    """Attempts in all, the first one included."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check_delays("LinearBackoff", self.initial_delay, self.max_delay)
        _check_delay("LinearBackoff(increment=...)", self.increment, zero=True)
        check_attempts("LinearBackoff", self.max_attempts)

    def delay(self, attempt: int, error: BaseException | None = None) -> timedelta:
        """Return the wait after a failed attempt, before jitter."""
        steps = max(0, attempt - 1)
        if steps > MAX_ATTEMPTS:
            return self.max_delay
        try:
            return min(self.initial_delay + steps * self.increment, self.max_delay)
        except OverflowError:
            return self.max_delay


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """How many of an agent's attempts may be retries, so that an outage does not become a storm."""

    ratio: float = 0.2
    """Retries per first attempt in the window, at most; from above 0 to 1."""
    window: timedelta = timedelta(minutes=1)
    min_retries: int = 10
    """Retries that a window always allows; an agent that runs rarely is tried again, too."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not _is_number(self.ratio) or not 0 < self.ratio <= 1:
            raise ConfigurationError(
                f"RetryBudget(ratio={self.ratio!r}): give a share above 0 and up to 1; 0.2 is one retry per five runs."
            )
        _check_delay("RetryBudget(window=...)", self.window)
        if not _is_whole(self.min_retries, 0):
            raise ConfigurationError(
                f"RetryBudget(min_retries={self.min_retries!r}): give a whole number from 0."
            )


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What `.retry(...)` of an agent says. Travels to the workers with its agent."""

    strategy: RetryStrategy
    max_attempts: int
    on: ErrorFilter | None = None
    """None: errors that say of themselves that they may pass."""
    budget: RetryBudget | None = None

    def spec(self) -> RetrySpec:
        """Return what shards have to know."""
        if self.budget is None:
            return RetrySpec(self.max_attempts)
        budget = self.budget
        return RetrySpec(
            self.max_attempts, float(budget.ratio), budget.window // _MICROSECOND, budget.min_retries
        )

    def digest(self) -> bytes:
        """Return what tells policies apart, the same in every process; but for the code of `functions`."""
        strategy = type(self.strategy)
        slots = getattr(strategy, "__slots__", ())
        own = (slots,) if isinstance(slots, str) else slots
        names = sorted({*own, *getattr(self.strategy, "__dict__", ())})
        values = {name: getattr(self.strategy, name, None) for name in names}
        plain = {name: value for name, value in values.items() if isinstance(value, _PLAIN)}
        said = (strategy.__module__, strategy.__qualname__, plain, self.max_attempts, self.budget)
        return repr(said).encode() + (b"" if self.on is None else self.on.digest())

    def functions(self) -> list[Callable[..., Any]]:
        """Return the user's functions that it calls."""
        delay = getattr(type(self.strategy), "delay", self.strategy.delay)
        return [delay, *(() if self.on is None else self.on.predicates)]

    def wants(self, error: BaseException, *, retryable: bool) -> bool:
        """Say whether an error is one after which to try again.

        Args:
            error: What ended the attempt.
            retryable: What the error says of itself.

        Raises:
            BaseException: What the user's predicate raised.
        """
        if any(isinstance(leaf, NEVER_RETRIED) for leaf in leaves(error)):
            return False
        return retryable if self.on is None else self.on.matches(error)

    def delay_us(
        self, attempt: int, error: BaseException, *, draw: Callable[[], float], asked_s: float | None = None
    ) -> int | None:
        """Return how long to wait after a failure, in microseconds; None: no further attempt.

        Args:
            attempt: Number of the attempt that failed, from 1.
            error: What it raised.
            draw: Gives random numbers from 0 to below 1; asked once.
            asked_s: Seconds that a server asked to wait: it is never less than that. None: it did not ask.

        Raises:
            TypeError: The user's strategy returned neither a timedelta nor None.
            BaseException: What the user's strategy raised.
        """
        delay: object = self.strategy.delay(attempt, error)
        if delay is None:
            return None
        if not isinstance(delay, timedelta):
            raise TypeError(
                f"delay() of {type(self.strategy).__name__} returned {delay!r}, which is no timedelta"
            )
        wait_us = max(0, min(delay, MAX_DELAY) // _MICROSECOND)
        jitter = bool(getattr(self.strategy, "jitter", False))
        drawn = draw() if jitter else 1.0
        after_us = int(wait_us * drawn)
        asked_us = int((asked_s or 0.0) * 1_000_000)
        if asked_us > after_us:
            return int(asked_us * (1 + SPREAD * drawn)) if jitter else asked_us
        return after_us


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= MAX_ATTEMPTS


def _check_delays(owner: str, initial: timedelta, highest: timedelta) -> None:
    _check_delay(f"{owner}(initial_delay=...)", initial)
    _check_delay(f"{owner}(max_delay=...)", highest)
    if highest < initial:
        raise ConfigurationError(f"{owner}: max_delay ({highest}) is shorter than initial_delay ({initial}).")


def _check_delay(what: str, value: object, *, zero: bool = False) -> None:
    if not isinstance(value, timedelta):
        raise ConfigurationError(f"{what} is {value!r}: give a timedelta, as in timedelta(seconds=5).")
    if value < timedelta(0) or (value == timedelta(0) and not zero):
        least = "from zero up" if zero else "above zero"
        raise ConfigurationError(f"{what} is {value}: give a duration {least}.")
    if value > MAX_DELAY:
        raise ConfigurationError(f"{what} is {value}: give at most {MAX_DELAY.days} days.")


def check_attempts(owner: str, value: object) -> None:
    if not _is_whole(value, 1):
        raise ConfigurationError(
            f"{owner}(max_attempts={value!r}): give a whole number from 1; the first one counts, so 3 is two retries."
        )


class RetryWindow(msgspec.Struct, array_like=True):
    """First attempts and retries of one agent in the last window, in constant memory."""

    window_us: int = 60_000_000
    """The window of the last `RetrySpec` seen; it says how coarse the steps are."""
    steps: list[tuple[int, int, int]] = []
    """(begin of the step in microseconds, first attempts in it, retries in it), ascending."""

    def note_first(self, spec: RetrySpec, now_us: int) -> None:
        """Count a first attempt."""
        if not spec.budget_ratio:
            return
        if self.window_us != spec.budget_window_us:
            self._resize(spec.budget_window_us)
        self._count(now_us, 1, 0)

    def allows(self, spec: RetrySpec, now_us: int, *, more: int = 0) -> bool:
        """Say whether the budget has a retry left; changes nothing. Without a budget it always has.

        Args:
            spec: The budget.
            now_us: Now.
            more: First attempts that are not counted yet.
        """
        if not spec.budget_ratio:
            return True
        width = max(1, spec.budget_window_us // STEPS)
        recent = [step for step in self.steps if step[0] + width + spec.budget_window_us > now_us]
        firsts, retries = more + sum(step[1] for step in recent), sum(step[2] for step in recent)
        return retries < max(spec.budget_min, int(spec.budget_ratio * firsts))

    def note_retry(self, spec: RetrySpec, now_us: int) -> None:
        """Count a retry that was allowed."""
        if not spec.budget_ratio:
            return
        if self.window_us != spec.budget_window_us:
            self._resize(spec.budget_window_us)
        self._count(now_us, 0, 1)

    def take(self, spec: RetrySpec, now_us: int) -> bool:
        """Count a retry if the budget allows it; returns whether it does."""
        allowed = self.allows(spec, now_us)
        if allowed:
            self.note_retry(spec, now_us)
        return allowed

    def _count(self, now_us: int, firsts: int, retries: int) -> None:
        width = max(1, self.window_us // STEPS)
        begin = now_us - now_us % width
        while self.steps and self.steps[0][0] + width + self.window_us <= now_us:
            del self.steps[0]
        # A clock that was set back counts into the newest step.
        if self.steps and self.steps[-1][0] >= begin:
            newest, first, again = self.steps[-1]
            self.steps[-1] = (newest, first + firsts, again + retries)
        else:
            self.steps.append((begin, firsts, retries))

    def _resize(self, window_us: int) -> None:
        """Go over to another window: what was counted stays, in steps of the new width."""
        self.window_us = window_us
        width = max(1, window_us // STEPS)
        merged: dict[int, tuple[int, int]] = {}
        for begin, firsts, retries in self.steps:
            old = merged.get(begin - begin % width, (0, 0))
            merged[begin - begin % width] = (old[0] + firsts, old[1] + retries)
        self.steps = [(begin, *counts) for begin, counts in sorted(merged.items())]
