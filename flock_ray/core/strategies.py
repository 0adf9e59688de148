"""What users choose for `.aggregates()`: strategies and windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, TypeAlias

from flock_ray.core.ballots import WindowRule
from flock_ray.errors import ConfigurationError

__all__ = ["AggregationStrategy", "SessionWindow", "SlidingWindow", "TumblingWindow", "Window"]

MAX_OVERLAP = 1_000
"""Sliding windows that one artifact may be in."""


@dataclass(frozen=True, slots=True)
class AggregationStrategy:
    """How an aggregate makes one result of several artifacts: `AggregationStrategy.MAJORITY_VOTE` and others.

    Some take an argument: `QUORUM(3)`, `FIRST_N(2)`, `MERGE(function)`.
    """

    name: str
    number: int = 0
    """Of QUORUM and FIRST_N; 0 otherwise."""
    function: Callable[[list[Any]], Any] | None = None
    """Of MERGE: makes the result of the list of inputs, on a worker."""

    COLLECT_ALL: ClassVar[AggregationStrategy]
    """The result is made of all inputs."""
    MAJORITY_VOTE: ClassVar[AggregationStrategy]
    """The value of `field` that most inputs have; half of them is not asked for (that is QUORUM)."""
    WEIGHTED_VOTE: ClassVar[AggregationStrategy]
    """The value of `field` with the largest sum of `weights`."""
    UNANIMOUS: ClassVar[AggregationStrategy]
    """The value of `field` that all inputs have; otherwise there is none."""
    QUORUM: ClassVar[AggregationStrategy]
    """QUORUM(k): the first value of `field` that k inputs have; otherwise there is none."""
    MAX_BY: ClassVar[AggregationStrategy]
    """The input with the highest `score`."""
    MIN_BY: ClassVar[AggregationStrategy]
    """The input with the lowest `score`."""
    FIRST_N: ClassVar[AggregationStrategy]
    """FIRST_N(n): the inputs that came first; FIRST_N alone is one."""
    MERGE: ClassVar[AggregationStrategy]
    """MERGE(function): what a function of the list of inputs returns."""
    RANK: ClassVar[AggregationStrategy]
    """`field` is a list from the best to the worst: the order of the sums of points (Borda count)."""

    def __call__(self, argument: Any) -> AggregationStrategy:
        """Return the strategy with its argument.

        Raises:
            ConfigurationError: It takes none, or not this one.
        """
        if self.name == "merge":
            if not callable(argument):
                raise ConfigurationError(
                    f"MERGE({argument!r}) needs a function of the list of inputs: MERGE(lambda items: Summary(...))"
                )
            return AggregationStrategy("merge", 0, argument)
        if self.name not in ("quorum", "first_n"):
            raise ConfigurationError(f"{self} takes no argument; only QUORUM(k), FIRST_N(n) and MERGE(fn) do")
        if isinstance(argument, bool) or not isinstance(argument, int) or argument < 1:
            raise ConfigurationError(
                f"{self.name.upper()}({argument!r}) needs a whole number from 1: {self.name.upper()}(3)"
            )
        return AggregationStrategy(self.name, argument)

    def __str__(self) -> str:
        """Write it as a user would."""
        argument = f"({self.number})" if self.number else ""
        end = "_VOTE" if self.name in ("majority", "weighted") else ""
        return f"{self.name.upper()}{end}{argument}"


for _name in (
    "collect_all", "majority_vote", "weighted_vote", "unanimous", "quorum", "max_by", "min_by", "first_n", "merge",
    "rank",
):  # fmt: skip
    setattr(AggregationStrategy, _name.upper(), AggregationStrategy(_name.removesuffix("_vote")))


@dataclass(frozen=True, slots=True)
class TumblingWindow:
    """Event time cut into pieces of one length, from the Unix epoch on, each artifact in exactly one."""

    size: timedelta

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _us(self.size, "TumblingWindow(size=...)")

    def rule(self, lateness_us: int) -> WindowRule:
        """Return what shards must know."""
        return WindowRule("tumbling", _us(self.size, ""), 0, lateness_us)


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """Windows of one length of which one begins every `slide`: an artifact is in several."""

    size: timedelta
    slide: timedelta

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        size_us, slide_us = (
            _us(self.size, "SlidingWindow(size=...)"),
            _us(self.slide, "SlidingWindow(slide=...)"),
        )
        if slide_us > size_us:
            raise ConfigurationError(
                f"SlidingWindow(size={self.size}, slide={self.slide}) leaves gaps: slide must be at most size"
            )
        if size_us > slide_us * MAX_OVERLAP:
            raise ConfigurationError(
                f"SlidingWindow(size={self.size}, slide={self.slide}) puts every artifact into "
                f"{size_us // slide_us} windows, at most {MAX_OVERLAP:,} are possible: choose a longer slide"
            )

    def rule(self, lateness_us: int) -> WindowRule:
        """Return what shards must know."""
        return WindowRule("sliding", _us(self.size, ""), _us(self.slide, ""), lateness_us)


@dataclass(frozen=True, slots=True)
class SessionWindow:
    """Artifacts that follow each other within less than `gap`; such a pause ends the window."""

    gap: timedelta

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _us(self.gap, "SessionWindow(gap=...)")

    def rule(self, lateness_us: int) -> WindowRule:
        """Return what shards must know."""
        return WindowRule("session", _us(self.gap, ""), 0, lateness_us)


Window: TypeAlias = TumblingWindow | SlidingWindow | SessionWindow


def _us(value: object, what: str) -> int:
    if not isinstance(value, timedelta) or value <= timedelta(0):
        raise ConfigurationError(
            f"{what} is {value!r}: give a timedelta above zero, as in timedelta(minutes=5)"
        )
    return value // timedelta(microseconds=1)
