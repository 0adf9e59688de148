"""What shards must know of retries, dead letters and limits of an agent; `core.wire` has these names, too."""

from __future__ import annotations

import msgspec

from flock_ray.core.ids import slot_of


class RetrySpec(msgspec.Struct, array_like=True, frozen=True):
    """What a shard must know of an agent's retries; when and for which errors is the worker's business."""

    max_attempts: int
    """From 1; the first one counts."""
    budget_ratio: float = 0.0
    """Retries per first attempt in the window, at most; 0: no budget."""
    budget_window_us: int = 60_000_000
    budget_min: int = 10
    """Retries that a window always allows."""


class DeadLetterSpec(msgspec.Struct, array_like=True, frozen=True):
    """Where failed activations of an agent go."""

    queue: str
    include_trace: bool = False


class Rate(msgspec.Struct, array_like=True, frozen=True):
    """At most `limit` starts in any `per_us`."""

    limit: int
    per_us: int
    keyed: bool = False
    """Per key of the agent's limits, not for the whole agent."""


class BreakerSpec(msgspec.Struct, array_like=True, frozen=True):
    """When an agent's circuit breaker opens, and how it closes again."""

    failure_threshold: int = 5
    """Consecutive failures that open it; with `failure_rate`, the least number of outcomes in the window."""
    recovery_us: int = 60_000_000
    half_open_attempts: int = 3
    """Attempts let through after that; all have to succeed."""
    failure_rate: float = 0.0
    """Share of failures in the window that opens it, up to 1; 0: it counts consecutive ones."""
    window_us: int = 60_000_000


class LimitSpec(msgspec.Struct, array_like=True, frozen=True):
    """Limits of one agent that hold over the whole cluster. One slot decides: see `home`."""

    rates: tuple[Rate, ...] = ()
    concurrency: int = 0
    """Activations at once; 0: no limit."""
    keyed_concurrency: int = 0
    """The same per key."""
    debounce_us: int = 0
    """An activation waits for so long, and a newer one of its key takes its place."""
    singleton: str = ""
    """What becomes of a second activation of a key: `queue`, `skip`, `replace`; empty: it runs."""
    breaker: BreakerSpec | None = None
    keyed: bool = False
    """Matches carry a key (`Match.lane`)."""
    together: bool = False
    """Something else is counted over all keys: the retries of an agent that has a budget for them."""

    def home(self, agent: str, key: str) -> int:
        """Return the slot that keeps the limits: of a key alone when nothing is counted over all keys."""
        whole = (
            self.together
            or self.concurrency
            or self.breaker is not None
            or any(not rate.keyed for rate in self.rates)
        )
        return slot_of(f"lane:{agent}" if whole or not self.keyed else f"lane:{agent}|{key}")
