"""How many may start in a time: exact over every window, in constant memory. Pure; part of the durable state."""

from __future__ import annotations

import msgspec

from flock_ray.core.wire import Rate

__all__ = ["RateWindow"]

STEPS = 100
"""Starts are remembered one by one up to this limit. With a higher one, those within a hundredth of the window share
a step, which leaves with its newest start: a place becomes free up to 1 % of the window late, never early."""


class RateWindow(msgspec.Struct, array_like=True):
    """The starts of one window of one rate.

    Steps say when they were, not when they end: a deploy may change the rate, and what started before still counts.
    """

    steps: list[tuple[int, int, int]] = []
    """(first start of the step in microseconds, its newest start, starts in it), ascending."""

    def allowance(self, rate: Rate, now_us: int) -> int:
        """Return how many more may start now; below 0 when a deploy has lowered the limit."""
        return rate.limit - self._inside(rate, now_us)

    def free_us(self, rate: Rate, now_us: int) -> int:
        """Return when the next one may start: `now_us` when that is now."""
        left = self._inside(rate, now_us)
        if left < rate.limit:
            return now_us
        for _, newest, count in self.steps:
            if (ends := newest + rate.per_us) > now_us:
                left -= count
                if left < rate.limit:
                    return ends
        return now_us

    def take(self, rate: Rate, now_us: int) -> None:
        """Count a start."""
        steps = self.steps
        gone = 0
        while gone < len(steps) and steps[gone][1] + rate.per_us <= now_us:
            gone += 1
        del steps[:gone]
        if steps:
            first, newest, count = steps[-1]
            # A clock that was set back counts into the newest step: a window is never shorter than it should be.
            if now_us <= newest or now_us - first < _width(rate):
                steps[-1] = (first, max(newest, now_us), count + 1)
                return
        steps.append((now_us, now_us, 1))

    def idle(self, rate: Rate, now_us: int) -> bool:
        """Say whether nothing that started matters any more."""
        return not self.steps or self.steps[-1][1] + rate.per_us <= now_us

    def _inside(self, rate: Rate, now_us: int) -> int:
        since = now_us - rate.per_us
        return sum(count for _, newest, count in self.steps if newest > since)


def _width(rate: Rate) -> int:
    return 0 if rate.limit <= STEPS else rate.per_us // STEPS
