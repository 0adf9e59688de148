"""Answers about limits and circuit breakers, read from a shard's state."""

from __future__ import annotations

from collections import Counter

import msgspec

from flock_ray.core.breakers import Breaker, State
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Activation
from flock_ray.core.wire import LimitSpec

__all__ = ["BreakerStatus", "LimitStatus", "held_back", "limit_statuses"]

MAX_KEYS = 20
"""Keys of one agent that a status names: those for which most waits."""


class BreakerStatus(msgspec.Struct, array_like=True, frozen=True):
    """A circuit breaker as its home slot sees it."""

    state: State
    failures: int
    """In a row, while it is closed."""
    changed_us: int
    """When the state changed last; 0: never."""
    until_us: int
    """While it is open: when it lets runs try; 0: by hand only."""
    trying: int
    """While it is half-open: runs let through that have not failed."""


class LimitStatus(msgspec.Struct, array_like=True):
    """What one shard knows of the limits of an agent; those of several shards add up."""

    agent: str
    running: int = 0
    """Runs that were let through and have not ended."""
    waiting: int = 0
    """Runs that limits hold back, or that no worker has room for."""
    delayed: int = 0
    """Runs that wait for a time: a debounce, or a retry."""
    keys: dict[str, int] = {}
    """Of those that wait, how many by key: the longest ones."""
    breaker: BreakerStatus | None = None
    """None where it is not kept, or there is none."""


def limit_statuses(core: ShardCore) -> list[LimitStatus]:
    """Return what the agents with limits do on this shard, by name."""
    found: dict[str, LimitStatus] = {}
    for name, info in sorted(core.agents.items()):
        if info.limits is not None:
            found[name] = LimitStatus(name, breaker=_breaker(core, name, info.limits))
    if not found:
        return []
    keys: dict[str, Counter[str]] = {}
    for slot in core.slots.values():
        for activation in slot.open.values():
            status = found.get(activation.agent)
            if status is None:
                continue
            if activation.admitted:
                status.running += 1
            elif activation.due_us:
                status.delayed += 1
            else:
                status.waiting += 1
                keys.setdefault(activation.agent, Counter())[activation.lane] += 1
    for name, counts in keys.items():
        if core.agents[name].limits is not None and counts.keys() != {""}:
            found[name].keys = dict(counts.most_common(MAX_KEYS))
    return list(found.values())


def _breaker(core: ShardCore, agent: str, limits: LimitSpec) -> BreakerStatus | None:
    slot = None if limits.breaker is None else core.slots.get(limits.home(agent, ""))
    if slot is None:
        return None
    lane = slot.lanes.get(agent)
    b = Breaker() if lane is None else lane.breaker
    return BreakerStatus(b.state, b.failures, b.changed_us, b.until_us, b.probes)


def held_back(core: ShardCore, activation: Activation) -> str:
    """Say what keeps an activation from being handed out, beside missing permits; empty when nothing does."""
    if activation.due_us:
        again = "after a failed attempt" if activation.failures else "for something newer (debounce)"
        return f"waits for a time {again}"
    limits = core.limits_of(activation.agent)
    if limits is None or activation.admitted:
        return ""
    lane = core.slots[activation.slot].lanes.get(activation.agent)
    if lane is not None and lane.breaker.state == "open":
        return "the circuit breaker of its agent is open"
    return "waits for the limits of its agent"
