"""What an agent declares of its limits, and the key of an artifact under them. For edges and workers: it holds code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from flock_ray.core.error_filters import ErrorFilter, leaves
from flock_ray.core.ids import derive_id
from flock_ray.core.wire import BreakerSpec, LimitSpec, Rate
from flock_ray.errors import (
    ArtifactError,
    BudgetExceededError,
    ContextTooLongError,
    GuardBlockedError,
    ModelRefusedError,
)

__all__ = ["AgentLimits"]

MAX_KEY_BYTES = 64
"""A longer key is replaced by its hash."""

_OF_THE_INPUT = (
    ArtifactError,
    BudgetExceededError,
    ContextTooLongError,
    GuardBlockedError,
    ModelRefusedError,
)
"""Errors that another input would not have had: they say nothing about the agent."""


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """Limits of one agent that hold over the whole cluster."""

    rates: tuple[Rate, ...] = ()
    concurrency: int = 0
    """Runs at once; 0: no limit."""
    keyed_concurrency: int = 0
    """The same per key."""
    debounce_us: int = 0
    debounce_keyed: bool = False
    singleton: str = ""
    """`queue`, `skip` or `replace`; empty: several may be open."""
    singleton_keyed: bool = False
    breaker: BreakerSpec | None = None
    breaker_on: ErrorFilter | None = None
    """Failures that the breaker counts; None: all but those that inputs are to blame for."""
    key: Callable[[Any], Any] | None = None
    """Of the model of an artifact; None: no limit is kept by key."""

    def spec(self) -> LimitSpec:
        """Return what shards must know."""
        queued = self.singleton == "queue"
        return LimitSpec(
            # In an order of their own: windows belong to rates by place, and a deploy may declare them in another.
            tuple(sorted(self.rates, key=lambda rate: (rate.keyed, -rate.per_us, rate.limit))),
            1 if self.singleton and not self.singleton_keyed else self.concurrency,
            1 if self.singleton and self.singleton_keyed else self.keyed_concurrency,
            self.debounce_us,
            "" if queued else self.singleton,
            self.breaker,
            self.key is not None,
        )

    def lane(self, model: Any) -> str:
        """Return the key of an artifact: text as it is, anything else as JSON; empty when limits have no key.

        Raises:
            Exception: What the key function raises, or that it returned nothing that JSON can say.
        """
        if self.key is None:
            return ""
        value = self.key(model)
        text = value if type(value) is str else msgspec.json.encode(value, order="deterministic").decode()
        data = text.encode()
        return text if len(data) <= MAX_KEY_BYTES else derive_id(data).hex()

    def functions(self) -> list[Callable[..., Any]]:
        """Return the user's code in it."""
        predicates = self.breaker_on.predicates if self.breaker_on is not None else ()
        return [*(() if self.key is None else (self.key,)), *predicates]

    def digest(self) -> bytes:
        """Return what else tells limits apart that have the same `spec`."""
        return b"" if self.breaker_on is None else self.breaker_on.digest()

    def trips(self, error: BaseException) -> bool:
        """Say whether the circuit breaker counts a failure; a predicate of `on` that raises says no."""
        if self.breaker is None:
            return True
        if self.breaker_on is None:
            return not all(_is_of_the_input(leaf) for leaf in leaves(error))
        try:
            return self.breaker_on.matches(error)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException:
            return False


def _is_of_the_input(error: BaseException) -> bool:
    return isinstance(error, _OF_THE_INPUT) and not error.retryable
