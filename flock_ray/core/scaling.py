"""How many workers a pool should have: a pure policy."""

from __future__ import annotations

from dataclasses import dataclass

UP_AFTER_S = 0.3
"""A pool grows when its oldest ready activation has waited this long."""

UP_EVERY_S = 0.7
"""Shortest time between two growths: about what a worker process takes to start, so that one is
seen to help before the next is started."""


@dataclass(frozen=True, slots=True)
class PoolView:
    """What the policy sees of a pool."""

    min: int
    max: int
    workers: int
    """Started or starting, without those that drain."""
    ready: int
    """Activations that wait for a permit."""
    running: int
    oldest_age_s: float
    """Age of the oldest ready activation in seconds; 0 when none waits."""
    idle_s: float
    """For how long nothing was ready or running, in seconds."""
    since_change_s: float
    """Since the pool last grew or shrank, in seconds."""
    idle_timeout_s: float


def target_workers(pool: PoolView) -> int:
    """Return how many workers the pool should have now.

    Grows by half (at least one) while work waits longer than `UP_AFTER_S`, from zero at once;
    shrinks by one after `idle_timeout_s` without work, never below `min`, and
    at once to a `max` that a deploy has lowered.
    """
    if pool.workers < pool.min:
        return pool.min
    if pool.ready and not pool.workers:
        return max(1, pool.min)
    waits = pool.ready and pool.oldest_age_s >= UP_AFTER_S
    if waits and pool.workers < pool.max and pool.since_change_s >= UP_EVERY_S:
        return min(pool.max, pool.workers + max(1, pool.workers // 2))
    limit = max(pool.max, pool.min)
    idle = not pool.ready and not pool.running and pool.idle_s >= pool.idle_timeout_s
    if idle and pool.workers > pool.min and pool.since_change_s >= pool.idle_timeout_s:
        return min(pool.workers - 1, limit)
    return min(pool.workers, limit)
