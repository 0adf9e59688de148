"""Limits of an agent over the whole cluster: the part of `AgentBuilder` that declares them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal

from flock_ray import agent_checks as checks
from flock_ray.core.error_filters import error_filter
from flock_ray.core.limiting import AgentLimits
from flock_ray.core.wire import BreakerSpec, Rate
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.agent import AgentBuilder
    from flock_ray.core.definition import AgentDefinition

__all__ = ["LimitDeclaring"]

Key = Callable[[Any], Any]
OnConflict = Literal["queue", "skip", "replace"]

MAX_RATES = 8
"""Rates of one agent: each is looked at for every run."""
MAX_COUNT = 10**9
MAX_TIME = timedelta(days=3650)


class LimitDeclaring:
    """The methods of `AgentBuilder` for limits. What a limit holds back waits on the board, durably and in order.

    They hold over all shards and workers together, and survive restarts. `flock.invoke()` is outside of them.
    """

    _definition: AgentDefinition

    def _at(self, method: str) -> str:
        raise NotImplementedError  # AgentBuilder's

    def _changed(self) -> AgentBuilder:
        raise NotImplementedError  # AgentBuilder's

    def rate_limit(self, n: int, per: timedelta, key: Key | None = None) -> AgentBuilder:
        """Let at most `n` runs start in any time of this length; several calls add up, as 10/s and 1000/day.

        Attempts that are made again count, too.

        Args:
            n: How many, from 1.
            per: In which time; it is no calendar second or day but any, so there are no bursts at its end.
            key: Function of an artifact's model: a limit for each key of its own, such as a customer. None: one
                limit for the whole agent.
        """
        at = self._at("rate_limit")
        rate = Rate(_count(n, "n", at), _us(per, "per", at), key is not None)
        known = self._limits
        if len(known.rates) >= MAX_RATES:
            raise ConfigurationError(
                f"{at} an agent has at most {MAX_RATES} rates; drop those that others imply"
            )
        return self._limit(at, key, rates=(*known.rates, rate))

    def concurrency(self, n: int, key: Key | None = None) -> AgentBuilder:
        """Let at most `n` runs go on at the same time on the whole cluster; `max_concurrency` is per replica.

        Args:
            n: How many, from 1.
            key: Function of an artifact's model: so many for each key. None: for the whole agent.
        """
        at = self._at("concurrency")
        if key is None:
            return self._limit(at, None, concurrency=_count(n, "n", at))
        return self._limit(at, key, keyed_concurrency=_count(n, "n", at))

    def debounce(self, wait: timedelta, key: Key | None = None) -> AgentBuilder:
        """Run only on the last one of several inputs: each waits, and a newer one takes its place.

        Those that were replaced are not run; an `activation.replaced` event names each.

        Args:
            wait: How long nothing newer must come.
            key: Function of an artifact's model: only inputs of one key replace each other. None: all do.
        """
        at = self._at("debounce")
        return self._limit(at, key, debounce_us=_us(wait, "wait", at), debounce_keyed=key is not None)

    def singleton(self, key: Key | None = None, on_conflict: OnConflict = "queue") -> AgentBuilder:
        """Have at most one run at a time, and say what becomes of the next one.

        Args:
            key: Function of an artifact's model: one run per key. None: one of the whole agent.
            on_conflict: "queue": it waits for its turn. "skip": while one waits or runs, others are dropped, with an
                `activation.skipped` event. "replace": the older one is cancelled, with `activation.replaced`.
        """
        at = self._at("singleton")
        checks.choice(on_conflict, ("queue", "skip", "replace"), "on_conflict", at)
        return self._limit(at, key, singleton=on_conflict, singleton_keyed=key is not None)

    def circuit_breaker(
        self,
        failure_threshold: int = 5,
        recovery_timeout: timedelta = timedelta(minutes=1),
        half_open_attempts: int = 3,
        *,
        failure_rate: float | None = None,
        window: timedelta | None = None,
        on: Any = None,
    ) -> AgentBuilder:
        """Stop running the agent when it keeps failing; inputs wait until it works again.

        Open, no run starts on the whole cluster. After `recovery_timeout` it is half-open: exactly
        `half_open_attempts` runs start; if all succeed it closes, if one fails it opens again. `flock.breakers`
        shows it, and opens and closes it by hand.

        Args:
            failure_threshold: Failures in a row that open it; with `failure_rate` the least number of runs in the
                window before the rate counts.
            recovery_timeout: How long it stays open.
            half_open_attempts: How many runs have to succeed then.
            failure_rate: Share of failed runs that opens it, above 0 and up to 1; None: it counts failures in a row.
            window: Time over which `failure_rate` is taken; None: a minute.
            on: What counts as a failure: exception classes, their names, or predicates of the exception; one or a
                list. None: every failure but those that the input or the declaration is to blame for (see the
                guide). A failed attempt that is made again counts like any other.
        """
        at = self._at("circuit_breaker")
        if window is not None and failure_rate is None:
            raise ConfigurationError(
                f"{at} window says over which time failure_rate is taken; give failure_rate, too"
            )
        breaker = BreakerSpec(
            _count(failure_threshold, "failure_threshold", at),
            _us(recovery_timeout, "recovery_timeout", at),
            _count(half_open_attempts, "half_open_attempts", at),
            0.0 if failure_rate is None else _share(failure_rate, at),
            BreakerSpec().window_us if window is None else _us(window, "window", at),
        )
        return self._limit(at, None, breaker=breaker, breaker_on=None if on is None else error_filter(on, at))

    @property
    def _limits(self) -> AgentLimits:
        known = self._definition.limits
        return known if isinstance(known, AgentLimits) else AgentLimits()

    def _limit(self, at: str, key: Key | None, **changes: Any) -> AgentBuilder:
        """Take more limits, if they go with those there are."""
        known = self._limits
        if key is not None:
            if not callable(key):
                raise ConfigurationError(
                    f"{at} key must be a function of the model, got {key!r}; write key=lambda order: order.customer_id"
                )
            if known.key is not None and not _is_same(known.key, key):
                raise ConfigurationError(
                    f"{at} the limits of one agent have one key, and another function was given before. Name the "
                    "function once and pass it to all of them; for two keys, declare two agents"
                )
            changes["key"] = known.key or key
        made = dataclasses.replace(known, **changes)
        _check(made, at)
        self._definition.limits = made
        return self._changed()


def _check(limits: AgentLimits, at: str) -> None:
    """Refuse limits that say two things at once."""
    if limits.key is not None:
        for name, given, keyed in (
            ("debounce", bool(limits.debounce_us), limits.debounce_keyed),
            ("singleton", limits.singleton in ("skip", "replace"), limits.singleton_keyed),
        ):
            if given and not keyed:
                raise ConfigurationError(
                    f"{at} the agent has limits with a key, so {name}() needs the same one: it would otherwise mix "
                    "inputs of all keys; give it key=, too"
                )
    if limits.singleton and (limits.keyed_concurrency if limits.singleton_keyed else limits.concurrency):
        raise ConfigurationError(
            f"{at} a singleton is a concurrency of 1 already; use singleton() or concurrency()"
        )


def _count(value: object, parameter: str, at: str) -> int:
    number = checks.whole_number(value, parameter, at)
    if number > MAX_COUNT:
        raise ConfigurationError(f"{at} {parameter} is at most {MAX_COUNT:,}, got {number!r}")
    return number


def _us(value: object, parameter: str, at: str) -> int:
    checks.duration_s(value, parameter, at)
    if not isinstance(value, timedelta) or value > MAX_TIME:
        raise ConfigurationError(f"{at} {parameter} is at most {MAX_TIME.days} days, got {value}")
    return value // timedelta(microseconds=1)


def _share(value: object, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigurationError(
            f"{at} failure_rate must be a number above 0 and up to 1, got {value!r}; 0.5 is half of the runs"
        )
    return float(value)


def _is_same(one: Key, other: Key) -> bool:
    """Say whether two functions are one, or two lambdas of the same text."""
    if one is other:
        return True
    try:
        return bool(one == other) or _is_same_code(one, other)
    except Exception:  # what a function closes over may not like to be compared
        return False


def _is_same_code(one: Key, other: Key) -> bool:
    if not isinstance(one, FunctionType) or not isinstance(other, FunctionType):
        return False
    a, b = one.__code__, other.__code__
    return (
        (a.co_code, a.co_consts, a.co_names, a.co_varnames, a.co_freevars)
        == (b.co_code, b.co_consts, b.co_names, b.co_varnames, b.co_freevars)
        and (one.__defaults__, one.__kwdefaults__) == (other.__defaults__, other.__kwdefaults__)
        and one.__closure__ == other.__closure__
        and one.__globals__ is other.__globals__
    )
